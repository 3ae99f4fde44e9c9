"""What the initial file system and the early boot ask of the kernel, recorded, and once for real in a namespace."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tools import need

from overhaul.dialects.ostree.device.earlyboot import patch_procfs, prepare_root
from overhaul.dialects.ostree.device.sysroot import SysrootError

_CHECKSUM = "b" * 64
_LINK = f"/ostree/boot.0/example/{_CHECKSUM}/"


class RecordedMounts:
    """Writes down what it is asked for, and refuses the call number `refused`."""

    def __init__(self, refused: int = -1) -> None:
        self.calls: list[tuple[str, ...]] = []
        self._refused = refused

    def bind(self, source: Path, target: Path) -> None:
        self._record("bind", source, target)

    def move(self, source: Path, target: Path) -> None:
        self._record("move", source, target)

    def mount(self, device: Path, target: Path, *, file_system: str) -> None:
        self._record(f"mount {file_system}", device, target)

    def detach(self, target: Path) -> None:
        self._record("detach", target)

    def unmount(self, target: Path) -> None:
        self._record("unmount", target)

    def _record(self, call: str, *paths: Path) -> None:
        self.calls.append((call, *map(str, paths)))
        if len(self.calls) - 1 == self._refused:
            raise OSError(22, "Invalid argument")


def deploy(root: Path) -> list[Path]:
    """Make a physical root with two deployments, the one that is the default first."""
    (root / "ostree/repo").mkdir(parents=True)
    (root / "ostree/deploy/example/var").mkdir(parents=True)
    (root / "ostree/deploy/example/var/state").write_text("kept\n")
    for name in ("boot/loader.0/entries", "home/somebody", f"ostree/boot.0/example/{_CHECKSUM}"):
        (root / name).mkdir(parents=True)
    (root / "boot/loader").symlink_to("loader.0")
    made = []
    for serial, commit in enumerate("ac"):
        directory = root / f"ostree/deploy/example/deploy/{commit * 64}.0"
        for name in ("var", "boot", "home", "sysroot", "proc", "run"):
            (directory / name).mkdir(parents=True)
        (directory / "ostree").symlink_to("sysroot/ostree")
        (directory / "commit").write_text(commit)
        (root / f"{_LINK}{serial}".removeprefix("/")).symlink_to(directory)
        (root / f"boot/loader.0/entries/ostree-{serial}.conf").write_text(
            f"title Example\nversion {2 - serial}\noptions quiet ostree={_LINK}{serial}\nlinux /vmlinuz\n"
        )
        made.append(directory)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "rootfs"
    made.mkdir()
    return made


def test_the_default_deployment_takes_the_place_of_the_physical_root(root: Path) -> None:
    newest, _older = deploy(root)
    mounts = RecordedMounts()
    deployment = prepare_root(mounts, root=root)
    assert deployment is not None
    assert deployment.commit == "a" * 64
    between = f"{root}.deployment"
    assert mounts.calls == [
        ("bind", str(newest), str(newest)),
        ("bind", f"{root}/ostree/deploy/example/var", f"{newest}/var"),
        ("bind", f"{root}/boot", f"{newest}/boot"),
        ("bind", f"{root}/home", f"{newest}/home"),
        ("move", str(newest), between),
        ("move", str(root), f"{between}/sysroot"),
        ("move", between, str(root)),
    ]
    assert not Path(between).exists()


@pytest.mark.parametrize("refused", range(7))
def test_a_refused_mount_takes_back_those_before_it(root: Path, refused: int) -> None:
    newest, _older = deploy(root)
    mounts = RecordedMounts(refused)
    with pytest.raises(OSError, match="Invalid argument"):
        prepare_root(mounts, root=root)
    between = f"{root}.deployment"
    undone = [
        ("move", f"{between}/sysroot", str(root)),
        ("move", between, str(newest)),
        ("detach", str(newest)),
    ]
    begun = {0: 0, 1: 1, 2: 1, 3: 1, 4: 1, 5: 2, 6: 3}[refused]
    assert mounts.calls[refused + 1 :] == undone[len(undone) - begun :]
    assert not Path(between).exists()


def test_a_home_that_is_a_link_into_the_state_is_left_alone(root: Path) -> None:
    newest, _older = deploy(root)
    (newest / "home").rmdir()
    (newest / "home").symlink_to("var/home")
    mounts = RecordedMounts()
    prepare_root(mounts, root=root)
    assert not [call for call in mounts.calls if call[-1].endswith("/home")]


def test_a_root_without_deployments_and_one_that_is_prepared_are_left_alone(root: Path) -> None:
    mounts = RecordedMounts()
    assert prepare_root(mounts, root=root) is None
    newest, _older = deploy(root)
    assert prepare_root(mounts, root=newest) is None
    assert mounts.calls == []


def test_deployments_that_nothing_boots_are_an_error(root: Path) -> None:
    deploy(root)
    (root / "boot/loader").unlink()
    (root / "boot/loader.0").rename(root / "boot/loader.9")
    with pytest.raises(SysrootError, match="no entry"):
        prepare_root(RecordedMounts(), root=root)


def break_entry(root: Path) -> None:
    (root / "boot/loader.0/entries/ostree-0.conf").write_text("title torn")


def break_link(root: Path) -> None:
    (root / f"{_LINK}0".removeprefix("/")).unlink()


def break_deployment(root: Path) -> None:
    (root / f"ostree/deploy/example/deploy/{'a' * 64}.0").rename(root / "gone")


@pytest.mark.parametrize("harm", [break_entry, break_link, break_deployment])
def test_a_default_that_cannot_start_lets_the_older_one_start(root: Path, harm: Callable[[Path], None]) -> None:
    _newest, older = deploy(root)
    harm(root)
    told: list[str] = []
    deployment = prepare_root(RecordedMounts(), root=root, told=told.append)
    assert deployment is not None
    assert deployment.commit == "c" * 64
    assert len(told) == 1
    (older / "proc/cmdline").write_text("quiet\n")
    assert patch_procfs(RecordedMounts(), sysroot=root, root=older) == f"ostree={_LINK}1"


def test_a_default_with_a_damaged_origin_still_starts(root: Path) -> None:
    newest, _older = deploy(root)
    newest.with_name(f"{newest.name}.origin").write_text("[torn")
    deployment = prepare_root(RecordedMounts(), root=root)
    assert deployment is not None
    assert deployment.commit == "a" * 64


def test_the_boot_link_of_what_runs_is_added_to_the_command_line(root: Path) -> None:
    _newest, older = deploy(root)
    (older / "proc/cmdline").write_text("root=PARTUUID=1 quiet\n")
    mounts = RecordedMounts()
    assert patch_procfs(mounts, sysroot=root, root=older) == f"ostree={_LINK}1"
    patched = older / "run/overhaul-ostree/cmdline"
    assert patched.read_text() == f"root=PARTUUID=1 quiet ostree={_LINK}1\n"
    assert mounts.calls == [("bind", str(patched), str(older / "proc/cmdline"))]
    assert (older / "run/ostree-booted").exists()


def test_a_command_line_that_names_a_deployment_is_left_alone(root: Path) -> None:
    newest, _older = deploy(root)
    (newest / "proc/cmdline").write_text(f"quiet ostree={_LINK}0\n")
    mounts = RecordedMounts()
    assert patch_procfs(mounts, sysroot=root, root=newest) == ""
    assert mounts.calls == []


def test_a_system_that_is_no_deployment_is_not_patched(root: Path, tmp_path: Path) -> None:
    deploy(root)
    with pytest.raises(SysrootError, match="none of its deployments"):
        patch_procfs(RecordedMounts(), sysroot=root, root=tmp_path)


_FOR_REAL = """
import sys
from pathlib import Path
from overhaul.dialects.ostree.device.earlyboot import patch_procfs, prepare_root
from overhaul.dialects.ostree.device.mounts import SystemMounts

root = Path(sys.argv[1])
mounts = SystemMounts()
mounts.bind(root, root)
prepare_root(mounts, root=root)
assert prepare_root(mounts, root=root) is None
(root / "proc/cmdline").write_text("quiet\\n")
for _again in range(2):
    patch_procfs(mounts, sysroot=root / "sysroot", root=root)
for name in ("commit", "var/state", "proc/cmdline"):
    print((root / name).read_text().strip())
print(*sorted(path.name for path in root.glob("home/*")), (root / "sysroot/ostree/repo").is_dir())
try:
    mounts.unmount(root / "commit")
except OSError as error:
    print(error.strerror)
"""


def test_the_kernel_does_what_it_is_asked_for(root: Path) -> None:
    deploy(root)
    argv = [need("unshare"), "--mount", "--propagation", "private", sys.executable, "-c", _FOR_REAL, str(root)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == ["a", "kept", f"quiet ostree={_LINK}0", "somebody True", "Invalid argument"]


def test_the_boot_does_not_depend_on_the_configuration(root: Path) -> None:
    config = root.parent / "update.toml"
    config.write_text("nonsense = 1\n")
    program = "from overhaul.dialects.ostree.device.cli import main; main()"
    argv = [sys.executable, "-c", program, f"--config={config}", f"--sysroot={root}"]
    assert subprocess.run([*argv, "--prepare-root"], check=False).returncode == 0
    nothing_runs = subprocess.run([*argv, "-p"], capture_output=True, text=True, check=False)
    assert (nothing_runs.returncode, "it has no ostree/repo" in nothing_runs.stderr) == (6, True)
