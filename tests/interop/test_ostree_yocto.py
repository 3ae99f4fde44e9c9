"""The Yocto class: bitbake is not here, so its task and function are run by the shell, filled in as bitbake does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.gpg_keys import gpg_home
from tests.loopback import serving
from tests.ostree_scene import OstreeDevice, ostree, quiet_directory
from tests.ostree_trees import BRANCH, TIME, make_tree
from tests.tools import need

from overhaul.cli.ostree import command
from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.device.updating import Mode, Result, run_cycle

_CLASS = Path(__file__).parents[2] / "deploy/yocto/classes/overhaul-ostree.bbclass"
#: What bitbake sets for every image.
_BITBAKE_EPOCH = 1_302_044_400


def body_of(function: str) -> str:
    """Return what stands between the braces of a shell function of the class."""
    body = _CLASS.read_text().partition(f"{function} () {{\n")[2].partition("\n}\n")[0]
    assert body
    return body


def make_rootfs(base: Path) -> Path:
    """Make a finished root file system."""
    rootfs = make_tree(base / "rootfs")
    (rootfs / "usr/lib/os-release").write_text("ID=kiosk\nPRETTY_NAME=Kiosk\n")
    for name in ("boot/EFI/BOOT", "home/somebody", "var/lib/app", "etc"):
        (rootfs / name).mkdir(parents=True)
    (rootfs / "boot/EFI/BOOT/bootx64.efi").write_text("app")
    (rootfs / "var/lib/app/state").write_text("of the image")
    return rootfs


class Build:
    """The variables of one image recipe."""

    def __init__(self, base: Path, **changed: str) -> None:
        self.values = {
            "IMAGE_ROOTFS": str(base / "rootfs"),
            "OSTREE_OS": "kiosk",
            "OSTREE_EXPORT": str(base / "common"),
            "OSTREE_BARE": str(base / "image"),
            "OSTREE_BRANCHNAME": BRANCH,
            "OSTREE_COMMIT_SUBJECT": "Build 7 of image in distro",
            "OSTREE_COMMIT_VERSION": "1.0",
            "OSTREE_LAYOUT": "refkit",
            "OSTREE_DELTAS": "1",
            "OSTREE_GPGDIR": "",
            "OSTREE_GPGID": "",
            "OSTREE_REMOTE": "",
            "OSTREE_UNSIGNED": "1",
            **changed,
        }

    def run(self, function: str, *arguments: Path) -> None:
        """Run a function of the class."""
        script = re.sub(r"\$\{([A-Z_]+)\}", lambda found: self.values[found[1]], body_of(function))
        script = script.replace("bbnote", "echo").replace("overhaul ostree", f"{sys.executable} -m overhaul ostree")
        done = subprocess.run(
            [need("sh"), "-e", "-s", *arguments], input=script, text=True, capture_output=True, check=False,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(_BITBAKE_EPOCH)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_class_calls_commands_and_options_that_there_are() -> None:
    text = _CLASS.read_text()
    for name in ("commit", "remote"):
        options = {option for parameter in command.commands[name].params for option in parameter.opts}
        called = text.partition(f"overhaul ostree {name}")[2].partition("\n}")[0].partition("elif")[0]
        assert set(re.findall(r"--[a-z-]+", called)) <= options
    for function in ("fakeroot do_ostree_export", "ostree_device_root"):
        shell = body_of(function).replace("bbnote", "echo")
        checked = subprocess.run([need("sh"), "-n"], input=shell, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_the_task_exports_a_finished_build(tmp_path: Path) -> None:
    make_rootfs(tmp_path)
    Build(tmp_path).run("fakeroot do_ostree_export")
    common, image = ArchiveRepository(tmp_path / "common"), ArchiveRepository(tmp_path / "image")
    assert common.branches() == image.branches()
    made = common.commit(common.branches()[BRANCH])
    assert made.subject == "Build 7 of image in distro"
    assert made.timestamp > TIME > _BITBAKE_EPOCH


@pytest.mark.parametrize("layout", ["refkit", "generic"])
@pytest.mark.parametrize("is_signed", [True, False])
def test_a_fresh_device_has_the_images_state_and_finds_no_update_waiting(layout: str, is_signed: bool) -> None:
    with quiet_directory() as base, gpg_home("good@example.org") as keys, serving(base / "common") as server:
        make_rootfs(base)
        signed = {"OSTREE_GPGDIR": str(keys), "OSTREE_GPGID": "good@example.org", "OSTREE_UNSIGNED": "0"}
        build = Build(base, OSTREE_LAYOUT=layout, OSTREE_REMOTE=server.url, **(signed if is_signed else {}))
        build.run("fakeroot do_ostree_export")
        device = OstreeDevice(directory=base / "device")
        build.run("ostree_device_root", device.sysroot)
        ostree("fsck", f"--repo={device.repository}")
        assert f"origin refspec: updates:{BRANCH}" in ostree("admin", "status", f"--sysroot={device.sysroot}")
        state = device.sysroot / "ostree/deploy/kiosk/var"
        assert (state / "lib/app/state").read_text() == "of the image"
        home = device.sysroot / "home" if layout == "refkit" else state / "home"
        assert (home / "somebody").is_dir()
        assert run_cycle(device.updater(), Mode.BOTH).result is Result.UP_TO_DATE
        # What comes later has to be signed where this was.
        build.values["OSTREE_COMMIT_VERSION"] = "1.1"
        (base / "rootfs/usr/lib/new").write_text("new")
        build.run("fakeroot do_ostree_export")
        assert run_cycle(device.updater(), Mode.BOTH).result is Result.DEPLOYED
        assert ("gpg-verify=true" in (device.repository / "config").read_text()) is is_signed
