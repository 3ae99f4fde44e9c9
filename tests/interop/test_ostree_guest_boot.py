"""A refkit device from firmware to updater: its disk boots under real firmware, updates itself, and goes back.

The firmware starts a UEFI application from a real FAT file system; its initramfs has our `--prepare-root` find the
deployment; in it our updater pulls from this machine, deploys, and its hook brings the new application to the ESP.
Each restart is one of the whole machine.
"""

import re
from pathlib import Path

import pytest
from tests.loopback import serving
from tests.ostree_guest import make_disk, make_release, prepare_parts, started
from tests.ostree_scene import BRANCH, OSNAME, REMOTE, OstreeDevice, quiet_directory

from overhaul.dialects.ostree.device.sysroot import Origin
from overhaul.dialects.ostree.exporting import Export, export
from overhaul.progress import Silence


@pytest.mark.timeout(1800)
def test_a_guest_updates_itself_and_goes_back_with_its_uefi_application(tmp_path: Path) -> None:
    with quiet_directory() as place, serving(tmp_path / "repository") as server:
        parts = prepare_parts(place)
        roots = [make_release(parts, place, release) for release in ("1", "2")]

        def publish(number: int) -> str:
            request = Export(
                tree=roots[number], repository=tmp_path / "repository", branch=BRANCH, version=str(number + 1),
                xattrs=False, delta_sources=0, timestamp=1_700_000_000 + number,
            )  # fmt: skip
            return export(request, signers=[], workers=2, progress=Silence()).commit

        device = OstreeDevice.make(place / "device", server.url)
        first = publish(0)
        backend = device.updater().backend
        origin = Origin(remote=REMOTE, branch=BRANCH)
        backend.pull(origin, known_timestamp=None, refused=lambda _commit: None)
        backend.deploy(osname=OSNAME, commit=first, origin=origin)
        config = device.repository / "config"
        config.write_text(config.read_text().replace("127.0.0.1", "10.0.2.2"))
        for name in ("boot/efi", "home"):
            (device.sysroot / name).mkdir(parents=True, exist_ok=True)
        (device.sysroot / "home/kept").write_text("kept")
        disk = tmp_path / "disk"
        make_disk(device.sysroot, roots[0] / "boot/EFI/BOOT/bootx64.efi", disk)
        second = publish(1)

        starts = []
        for _start in range(3):
            with started(disk, tmp_path) as told:
                starts.append(list(told))
    old, new, back = starts
    link = f"link=/ostree/boot\\.[01]/{OSNAME}/[0-9a-f]{{64}}/0"
    assert re.fullmatch(f"start=1 release=1 app=1 booted=yes {link}", old[0])
    assert re.fullmatch(
        r"home=kept mine= sysroot=read-only physical=boot\.[01] boot\.[01]\.[01] deploy lock repo", old[1]
    )
    assert old[2:] == ["--one-shot: 0 /etc/mine: added, kept deployed 2 (restarts are left to the owner)"]
    assert re.fullmatch(f"start=2 release=2 app=2 booted=yes {link}", new[0])
    assert new[1].startswith("home=kept mine=mine sysroot=read-only ")
    gone_back = f"--rollback: 0 rolled-back {first[:12]} (restart the device)"
    assert new[2:] == ["--confirm: 0 confirmed 2", gone_back]
    # The application on the ESP went back together with the deployment.
    assert re.fullmatch(f"start=3 release=1 app=1 booted=yes {link}", back[0])
    assert back[2].startswith(f"--one-shot: 0 refused {second[:12]} ")
    assert back[3] == "end"
