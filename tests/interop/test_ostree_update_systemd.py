"""The updater's units under a real systemd: a container that boots one OSTree deployment after the other.

The container's root is the deployment itself, so that the updater recognizes what runs; programs come from this
machine's /usr, which is laid over the deployment's. logind, its bus, its inhibitors and its restart are real.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.loopback import serving
from tests.ostree_scene import OSNAME, OstreeDevice, Publisher, quiet_directory
from tests.tools import need

from overhaul.dialects.ostree.device.state import EventKind, Phase, StateFile

PROJECT = Path(__file__).parents[2]
UNITS = PROJECT / "deploy/systemd"
NAMES = ("refkit-update.service", "refkit-update-post-check.service")
EARLY = "refkit-patch-procfs.service"
_PATIENCE_S = 120
#: How systemd-nspawn tells that the container restarts.
_REBOOTED = 133
_PROGRAM = f"{sys.executable} -c 'from overhaul.dialects.ostree.device.cli import main; main()'"
_HOLDER = """[Unit]
Requires=systemd-logind.service
After=systemd-logind.service
ConditionPathExists=!/sysroot/let-go
[Service]
Type=simple
ExecStart=systemd-inhibit --what=shutdown --who=Backup "--why=writes the tape" --mode=block \\
  sh -c 'touch /sysroot/held; until [ -e /sysroot/let-go ]; do sleep 0.1; done'
"""
_BOOTED = """[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/touch /run/ostree-booted
"""
#: Waits for the backup to hold its lock, so that the order of the test is sure.
_DROP_IN = """[Unit]
Requires=booted.service systemd-logind.service
After=booted.service systemd-logind.service
Wants=holder.service
[Service]
PrivateTmp=no
ExecStartPre=sh -c 'until [ -e /sysroot/held ]; do sleep 0.1; done'
ExecStart=
ExecStart={program} {arguments}
StandardOutput=file:/sysroot/said
StandardError=inherit
"""
_TARGET = """[Unit]
Requires=basic.target booted.service
Wants=refkit-update-post-check.service refkit-update.service
AllowIsolate=yes
"""
_SETTINGS = """[network]
allow_http = true
[reboot]
inhibitor_wait_s = 0
[health]
units = ["systemd-logind.service"]
"""
_HOOK = "#!/bin/sh\nsystemd-inhibit --list --no-legend > /sysroot/inhibitors\n"


def program_places() -> list[Path]:
    """Return the directories that hold the project and its Python, outside /usr."""
    places = [PROJECT, Path(sys.prefix), Path(sys.base_prefix)]
    return [path for path in dict.fromkeys(places) if not path.is_relative_to("/usr")]


def system_files() -> dict[str, str | None]:
    """Return what the tree needs besides the kernel to be booted in a container."""
    place = "usr/etc/systemd/system"
    arguments = {"refkit-update.service": "--check-interval 1", "refkit-update-post-check.service": "--confirm"}
    files: dict[str, str | None] = {
        "usr/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/nonexistent:/usr/sbin/nologin\n",
        "usr/etc/group": "root:x:0:\nmessagebus:x:100:\ntty:x:5:\nutmp:x:43:\n",
        "usr/etc/machine-id": "",
        "usr/etc/os-release": "-> ../usr/lib/os-release",
        "usr/etc/overhaul/ostree-update.toml": _SETTINGS,
        "usr/etc/overhaul/ostree-hooks/post-apply.d/50-look": _HOOK,
        f"{place}/holder.service": _HOLDER,
        f"{place}/booted.service": _BOOTED,
        f"{place}/test.target": _TARGET,
        f"{place}/default.target": "-> test.target",
    }
    for name in NAMES:
        files[f"{place}/{name}"] = (UNITS / name).read_text().replace("After=multi-user.target\n", "")
        drop_in = _DROP_IN.format(program=_PROGRAM, arguments=arguments[name])
        files[f"{place}/{name}.d/here.conf"] = drop_in
    for directory in ("dev", "run", "sys", "tmp", "root", "home", "opt"):
        files[f"{directory}/.keep"] = ""
    for path in program_places():
        files[f"{path.relative_to('/')}/.keep"] = ""
    for link in ("bin", "sbin", "lib", "lib64"):
        files[link] = f"-> usr/{link}"
    return files


class Container:
    """A booted deployment, and what its updater says."""

    def __init__(self, process: subprocess.Popen[bytes], said: Path) -> None:
        self.process = process
        # Open for both, so that it has no end while no service writes.
        self._said = os.open(said, os.O_RDWR | os.O_NONBLOCK)
        self._text = b""

    def read_until(self, words: str) -> str:
        """Return what the updater says up to the line that holds `words`."""
        before = b""
        while True:
            line, newline, rest = self._text.partition(b"\n")
            if newline:
                self._text = rest
                before += line + newline
                if words.encode() in line:
                    return before.decode()
                continue
            if not select.select([self._said], [], [], _PATIENCE_S)[0]:
                raise AssertionError(f"{words!r} did not come; the updater said:\n{before.decode()}")
            self._text += os.read(self._said, 65536)

    def close(self) -> None:
        """Switch it off."""
        if self.process.poll() is None:
            # Killing systemd-nspawn alone would leave its system running; without its first process none goes on.
            for children in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)
        self.process.wait()
        os.close(self._said)


@contextmanager
def container(device: OstreeDevice, deployment: str) -> Iterator[Container]:
    """Boot a deployment."""
    stateroot = device.sysroot / "ostree/deploy" / OSNAME
    said = device.sysroot / "said"
    if not said.exists():
        os.mkfifo(said)
    command = [
        need("systemd-nspawn"), "--boot", "--quiet", "--register=no", "--keep-unit", "--console=pipe",
        f"--directory={stateroot / 'deploy' / deployment}", f"--bind={stateroot / 'var'}:/var", "--bind-ro=/usr",
        # Not with what is mounted below it, which would show the container's /usr in the deployment's place.
        f"--bind={device.sysroot}:/sysroot:norbind", f"--bind={device.sysroot / 'boot'}:/boot:norbind",
        f"--machine=overhaul-ostree-{os.getpid()}", *(f"--bind-ro={path}" for path in program_places()),
    ]  # fmt: skip
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
    booted = Container(process, said)
    try:
        yield booted
    finally:
        booted.close()


@pytest.mark.timeout(500)
def test_the_service_updates_waits_for_an_inhibitor_restarts_and_confirms() -> None:
    with quiet_directory() as place:
        publisher = Publisher(place / "publisher")
        with serving(publisher.repository) as server:
            first = publisher.publish("1", system_files())
            device = OstreeDevice.make(place / "device", server.url)
            old = device.install()
            hook = device.etc() / "overhaul/ostree-hooks/post-apply.d/50-look"
            hook.chmod(0o755)
            second = publisher.publish("2", system_files())
            states = StateFile(device.sysroot / f"ostree/deploy/{OSNAME}/var/lib/overhaul-ostree")
            with container(device, old.name) as booted:
                held = booted.read_until("restart-held")
                assert "Backup (writes the tape)" in held + booted.read_until("Backup")
                assert device.deployed() == [second, first]
                assert states.load().phase is Phase.READY
                # While it deployed, the updater itself held a shutdown back.
                assert "ostree-update" in (device.sysroot / "inhibitors").read_text()
                (device.sysroot / "let-go").touch()
                assert booted.process.wait(_PATIENCE_S) == _REBOOTED
            new = device.boot()
            with container(device, new.name) as booted:
                booted.read_until("confirmed 2")
                booted.read_until("up-to-date")
            state = states.load()
            assert state.phase is Phase.IDLE
            assert state.history[-1].kind is EventKind.CONFIRMED
            device.fsck()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Units whose program is there: systemd looks for it."""
    for name in (*NAMES, EARLY):
        text = (UNITS / name).read_text().replace("/usr/bin/refkit-ostree-update", "/bin/true")
        (tmp_path / name).write_text(text)
    return tmp_path


def against(installed: Path, unit: str) -> list[str]:
    """Return what systemd says against a unit."""
    done = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/usr/sbin", "SYSTEMD_UNIT_PATH": f"{installed}:/usr/lib/systemd/system:"},
    )
    return [line for line in done.stderr.splitlines() if "refkit" in line or "cycle" in line]


@pytest.mark.parametrize("unit", [*NAMES, EARLY])
def test_systemd_finds_nothing_against_the_unit(installed: Path, unit: str) -> None:
    assert against(installed, unit) == []


def test_the_command_line_is_patched_before_the_system_starts_and_without_a_cycle(installed: Path) -> None:
    wants = installed / "sysinit.target.wants"
    wants.mkdir()
    (wants / EARLY).symlink_to(f"../{EARLY}")
    assert against(installed, "sysinit.target") == []
    # An ordinary unit, which comes after sysinit.target, would be a cycle, and systemd would leave it out.
    (installed / EARLY).write_text((installed / EARLY).read_text().replace("DefaultDependencies=no\n", ""))
    assert against(installed, "sysinit.target") != []
