"""An ordinary OSTree device: Debian's own `ostree-prepare-root` starts what our updater deployed, and what it left.

The real `ostree` installs the device, /sysroot is read-only (`sysroot.readonly`), and the kernel and the initramfs are
those that the boot loader's entries name. Each restart is one of the whole machine.
"""

import re
from pathlib import Path

import pytest
from tests.loopback import serving
from tests.ostree_plain_guest import make_plain_disk, make_plain_release, plainly_started, prepare_plain_parts
from tests.ostree_scene import BRANCH, OstreeDevice, ostree, quiet_directory

from overhaul.dialects.ostree.exporting import Export, export
from overhaul.progress import Silence


@pytest.mark.timeout(1800)
def test_what_we_deploy_is_started_by_the_programs_of_debian_and_gone_back_from(tmp_path: Path) -> None:
    with quiet_directory() as place, serving(tmp_path / "repository") as server:
        parts = prepare_plain_parts(place)
        roots = [make_plain_release(parts, place, release) for release in ("1", "2")]

        def publish(number: int) -> str:
            request = Export(
                tree=roots[number], repository=tmp_path / "repository", branch=BRANCH, version=str(number + 1),
                layout="generic", xattrs=False, delta_sources=0, timestamp=1_700_000_000 + number,
            )  # fmt: skip
            return export(request, signers=[], workers=2, progress=Silence()).commit

        publish(0)
        device = OstreeDevice.make(place / "device", server.url)
        first = device.install().commit
        ostree("config", f"--repo={device.repository}", "set", "sysroot.readonly", "true")
        config = device.repository / "config"
        config.write_text(config.read_text().replace("127.0.0.1", "10.0.2.2"))
        disk = tmp_path / "disk"
        make_plain_disk(device.sysroot, disk)
        second = publish(1)

        starts = []
        for _start in range(3):
            with plainly_started(disk, tmp_path) as told:
                starts.append(list(told))
    old, new, back = starts
    writable = "writable= /etc /var /boot"
    assert old == [
        "start=1 release=1 kernel=6.1 booted=yes",
        f"mine= home= {writable}",
        "--one-shot: 0 /etc/mine: added, kept deployed 2 (restarts are left to the owner)",
    ]
    assert new == [
        "start=2 release=2 kernel=6.2 booted=yes",
        f"mine=mine home=kept {writable}",
        "--confirm: 0 confirmed 2",
        f"--rollback: 0 rolled-back {first[:12]} (restart the device)",
    ]
    assert back[:2] == ["start=3 release=1 kernel=6.1 booted=yes", f"mine=mine home=kept {writable}"]
    assert re.match(f"--one-shot: 0 refused {second[:12]} ", back[2])
    assert back[3:] == ["end"]
