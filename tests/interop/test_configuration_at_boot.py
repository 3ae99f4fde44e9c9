"""The half of carrying configuration over that runs before the system: the shipped script, run by real shells."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.tools import need

from overhaul.install.configuration.layers import Layers

_SCRIPT = Path(__file__).parents[2] / "deploy/configuration/overhaul-mount-etc"


class Boot:
    """A root file system, a state partition with a layer for slot B, and a command line."""

    def __init__(self, directory: Path) -> None:
        self.root, self.state, self.cmdline = directory / "root", directory / "state", directory / "cmdline"
        (self.root / "etc").mkdir(parents=True)
        (self.root / "etc/motd").write_text("shipped\n")
        for name in ("upper", "work"):
            (self.state / "etc/B.0123" / name).mkdir(parents=True)
        (self.state / "etc/B.0123/upper/motd").write_text("mine\n")
        (self.state / "etc/B").symlink_to("B.0123")

    def start(
        self, cmdline: str, *, shell: str = "sh", before: Path = Path("/usr/sbin")
    ) -> subprocess.CompletedProcess[str]:
        """Run the script as the initial RAM file system does, and answer what /etc/motd says then."""
        self.cmdline.write_text(cmdline)
        then = 'mounted=0; "$1" "$0" "$2" || mounted=$?; cat "$2/etc/motd"; exit $mounted'
        return subprocess.run(
            [need("unshare"), "--mount", "sh", "-c", then, _SCRIPT, need(shell), self.root],
            env={"PATH": f"{before}:/usr/sbin:/usr/bin:/sbin:/bin", "OVERHAUL_CMDLINE": str(self.cmdline)}
            | {"OVERHAUL_STATE": str(self.state)},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    return Boot(tmp_path)


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_slot_that_starts_has_its_layer(boot: Boot, shell: str) -> None:
    ended = boot.start("root=/dev/sda2 ro overhaul.slot=B quiet", shell=shell)

    assert (ended.returncode, ended.stdout) == (0, "mine\n")


def test_the_kernels_mounts_tell_whether_a_slot_shows_its_layer(boot: Boot) -> None:
    boot.cmdline.write_text("overhaul.slot=B")
    layers = Layers(boot.state / "etc")
    tables = []
    for laid in (":", f"sh {_SCRIPT} {boot.root}", f"sh {_SCRIPT} {boot.root} && mount -t tmpfs over {boot.root}/etc"):
        shown = subprocess.run(
            [need("unshare"), "--mount", "sh", "-ec", f"{laid} && cat /proc/self/mountinfo"],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OVERHAUL_CMDLINE": str(boot.cmdline)}
            | {"OVERHAUL_STATE": str(boot.state)},
            check=True,
            capture_output=True,
            text=True,
        )
        tables.append(shown.stdout)

    assert [layers.is_shown("B", boot.root / "etc", table) for table in tables] == [False, True, False]
    # Without a layer there is nothing to be shown.
    assert layers.is_shown("A", boot.root / "etc", tables[0])
    (boot.state / "etc/B").unlink()
    (boot.state / "etc/B.4567/upper").mkdir(parents=True)
    (boot.state / "etc/B").symlink_to("B.4567")
    assert not layers.is_shown("B", boot.root / "etc", tables[1])


def test_a_slot_without_a_layer_has_what_its_image_ships(boot: Boot) -> None:
    ended = boot.start("overhaul.slot=A")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "shipped\n", "")


@pytest.mark.parametrize("cmdline", ["quiet", "overhaul.slot=", "overhaul.slot=../B"])
def test_a_command_line_without_a_slot_is_told(boot: Boot, cmdline: str) -> None:
    ended = boot.start(cmdline)

    assert (ended.returncode, ended.stdout) == (1, "shipped\n")
    assert "names no slot" in ended.stderr


def test_a_layer_that_cannot_be_mounted_leaves_a_system_that_starts(boot: Boot) -> None:
    (boot.state / "etc/B.0123/work").rmdir()

    ended = boot.start("overhaul.slot=B")

    assert (ended.returncode, ended.stdout) == (1, "shipped\n")
    assert "cannot be mounted" in ended.stderr


def test_what_is_written_later_stays_in_the_layer_that_was_mounted(boot: Boot) -> None:
    boot.cmdline.write_text("overhaul.slot=B")
    then = f"sh {_SCRIPT} {boot.root} && ln -sfn B.4567 {boot.state}/etc/B && echo new > {boot.root}/etc/new"
    subprocess.run(
        [need("unshare"), "--mount", "sh", "-ec", then],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OVERHAUL_CMDLINE": str(boot.cmdline)}
        | {"OVERHAUL_STATE": str(boot.state)},
        check=True,
    )

    assert (boot.state / "etc/B.0123/upper/new").read_text() == "new\n"
    assert not (boot.root / "etc/new").exists()


def test_the_units_are_such_that_systemd_takes_them(tmp_path: Path) -> None:
    deploy = _SCRIPT.parents[1]
    services = (deploy / "systemd" / f"overhaul-{name}.service" for name in ("share", "carry"))
    for unit in (_SCRIPT.parent / "overhaul-etc.service", *services):
        copied = tmp_path / unit.name
        text = unit.read_text().replace("/usr/lib/overhaul/overhaul-mount-etc", "/bin/true")
        copied.write_text(text.replace("/usr/bin/overhaul", "/bin/true"))
        told = subprocess.run(
            [need("systemd-analyze"), "verify", "--man=no", copied], capture_output=True, text=True, check=False
        )
        assert unit.name not in told.stderr


def test_a_state_partition_is_checked_before_it_is_mounted(boot: Boot, tmp_path: Path) -> None:
    state = tmp_path / "state.ext4"
    subprocess.run([need("mke2fs"), "-q", "-t", "ext4", "-d", boot.state, state, "4M"], check=True)
    # As the kernel leaves a file system in which it met an error.
    subprocess.run([need("debugfs"), "-w", "-R", "ssv state 3", state], check=True, capture_output=True)
    shutil.rmtree(boot.state)

    ended = boot.start(f"overhaul.slot=B overhaul.state={state}")

    assert (ended.returncode, ended.stdout) == (0, "mine\n"), ended.stderr
    shown = subprocess.run([need("dumpe2fs"), "-h", state], check=True, capture_output=True, text=True).stdout
    assert re.search(r"^Filesystem state: +clean$", shown, re.MULTILINE), shown


@pytest.mark.parametrize("words", ["overhaul.state=PARTLABEL=nowhere", "overhaul.state=/dev/null"])
def test_a_state_partition_that_is_not_there_leaves_a_system_that_starts(boot: Boot, words: str) -> None:
    # What is waited for in vain is waited for without a clock.
    (boot.root / "sleep").write_text("#!/bin/sh\nexit 0\n")
    (boot.root / "sleep").chmod(0o755)

    ended = boot.start(f"overhaul.slot=B {words}", before=boot.root)

    assert (ended.returncode, ended.stdout) == (1, "shipped\n")
    assert "the state partition" in ended.stderr


def test_the_shells_scripts_are_such_that_a_linter_takes_them() -> None:
    folder = _SCRIPT.parent
    scripts = [path for path in folder.rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!")]
    assert len(scripts) == 5
    # Left out: what the generators define, and files of theirs that are read in.
    command: list[str | Path] = [need("shellcheck"), "--exclude=SC1091,SC2154,SC2034", *scripts]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout
