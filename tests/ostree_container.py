"""A container with a real systemd that boots one OSTree deployment after the other.

Its root is the deployment itself, so that the updater recognizes what runs; programs come from this machine's /usr,
which is laid over the deployment's. logind, its bus, its inhibitors and its restart are real, and so are the units;
drop-ins only say where the updater's program lies here.
"""

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.nspawn import switch_off
from tests.ostree_scene import OSNAME, OstreeDevice
from tests.tools import need
from tests.waiting import until

PROJECT = Path(__file__).parents[1]
UNITS = PROJECT / "deploy/systemd"
SERVICE, CHECK = "refkit-update.service", "refkit-update-post-check.service"
PATIENCE_S = 300
#: How systemd-nspawn tells that the container restarts.
REBOOTED = 133
PROGRAM = (sys.executable, "-c", "from overhaul.dialects.ostree.device.cli import main; main()")
_COMMAND_LINE = f"{PROGRAM[0]} {PROGRAM[1]} '{PROGRAM[2]}'"
_BOOTED = """[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/touch /run/ostree-booted
"""
_DROP_IN = """[Unit]
Requires=booted.service systemd-logind.service
After=booted.service systemd-logind.service
[Service]
PrivateTmp=no
ExecStart=
ExecStart={program} {arguments}
StandardOutput=file:/sysroot/said
StandardError=inherit
"""
#: Debian's own also wants consoles to log in at.
_TARGET = """[Unit]
Requires=basic.target booted.service
After=basic.target
AllowIsolate=yes
"""
_SETTINGS = """[network]
allow_http = true
[reboot]
inhibitor_wait_s = 0
[health]
units = ["systemd-logind.service"]
"""


def program_places() -> list[Path]:
    """Return the directories that hold the project and its Python, outside /usr."""
    places = [PROJECT, Path(sys.prefix), Path(sys.base_prefix)]
    return [path for path in dict.fromkeys(places) if not path.is_relative_to("/usr")]


def system_files() -> dict[str, str | None]:
    """Return what the tree needs besides the kernel to be booted in a container; the updater's units are enabled."""
    place = "usr/etc/systemd/system"
    files: dict[str, str | None] = {
        "usr/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/nonexistent:/usr/sbin/nologin\n",
        "usr/etc/group": "root:x:0:\nmessagebus:x:100:\ntty:x:5:\nutmp:x:43:\n",
        "usr/etc/machine-id": "",
        "usr/etc/os-release": "-> ../usr/lib/os-release",
        "usr/etc/overhaul/ostree-update.toml": _SETTINGS,
        f"{place}/booted.service": _BOOTED,
        f"{place}/multi-user.target": _TARGET,
        f"{place}/default.target": "-> multi-user.target",
    }
    for name, arguments in ((SERVICE, "--check-interval 1"), (CHECK, "--confirm")):
        files[f"{place}/{name}"] = (UNITS / name).read_text()
        files[f"{place}/{name}.d/here.conf"] = _DROP_IN.format(program=_COMMAND_LINE, arguments=arguments)
        files[f"{place}/multi-user.target.wants/{name}"] = f"-> ../{name}"
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
            if not select.select([self._said], [], [], PATIENCE_S)[0]:
                raise AssertionError(f"{words!r} did not come; the updater said:\n{before.decode()}")
            self._text += os.read(self._said, 65536)

    def until_started(self) -> str:
        """Wait until everything that starts with it has, and return what its systemd says of itself."""
        until(lambda: self._process(1) is not None)
        until(lambda: self.run("systemctl", "is-system-running") not in {"", "offline"})
        return self.run("systemctl", "is-system-running", "--wait")

    def run(self, *command: str) -> str:
        """Run a command in it, as its root, and return what it printed; how it ended is the command's affair."""
        place = f"--target={self.host_pid(1)}"
        entered = [need("nsenter"), place, "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", *command]
        return subprocess.run(entered, check=False, capture_output=True, text=True, timeout=PATIENCE_S).stdout.strip()

    def show(self, unit: str) -> dict[str, str]:
        """Return what its systemd says of a unit."""
        lines = self.run("systemctl", "show", unit).splitlines()
        return {key: value for key, _equals, value in (line.partition("=") for line in lines)}

    def host_pid(self, pid: int) -> int:
        """Return what this machine calls a process of the container."""
        found = self._process(pid)
        assert found is not None, f"the container has no process {pid}"
        return found

    def _process(self, pid: int) -> int | None:
        waiting = [self.process.pid]
        while waiting:
            found = waiting.pop()
            try:
                status = Path(f"/proc/{found}/status").read_text()
                children = [path.read_text() for path in Path(f"/proc/{found}/task").glob("*/children")]
            except OSError:
                continue
            spaces = re.search(r"NSpid:\t(.*)", status)
            if spaces is not None and spaces[1].split()[1:] == [str(pid)]:
                return found
            waiting += map(int, " ".join(children).split())
        return None

    def close(self) -> None:
        """Switch it off."""
        switch_off(self.process)
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
