"""The attended-sysupgrade server as the Ansible role sets it up, on this machine and yet away from it.

The role is run for real inside a mount namespace: /etc is a copy there, /opt, /run, /var/lib are empty, and
/opt/overhaul is this checkout's environment. Accounts, directories, keys, configuration and units are the role's own.
The programs are started from the lines of the units, with their accounts, masks and capabilities, by `setpriv`;
systemd itself does not run here.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.tools import need

PROJECT = Path(__file__).parents[1]
DEPLOY = PROJECT / "deploy"
PLAYBOOK = DEPLOY / "ansible/site.yml"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Unit:
    """The lines of a unit that its program is started with."""

    values: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Unit":
        """Return the lines of a unit file."""
        unit = cls()
        for line in path.read_text().splitlines():
            name, equals, value = line.partition("=")
            if equals and not line.startswith(("#", "[")):
                unit.values.setdefault(name, []).append(value)
        return unit

    def command(self, line: str) -> list[str]:
        """Return `line` as its account would run it."""
        [user], [group] = self.values["User"], self.values["Group"]
        capabilities = [name.removeprefix("CAP_").lower() for name in self.values["CapabilityBoundingSet"][0].split()]
        confined = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--inh-caps=-all"]
        confined.append("--bounding-set=" + ",".join(["-all", *(f"+{name}" for name in capabilities)]))
        if self.values.get("NoNewPrivileges") == ["yes"]:
            confined.append("--no-new-privs")
        environment = ["env", "--ignore-environment", f"PATH={_PATH}", f"USER={user}", *self.values["Environment"]]
        [mask] = self.values["UMask"]
        return [*confined, *environment, "sh", "-c", f"umask {mask}; exec {line}"]


class Machine:
    """A mount namespace to run things in."""

    def __init__(self, holder: "subprocess.Popen[str]") -> None:
        self._inside = ["nsenter", f"--target={holder.pid}", "--mount", "--"]

    def run(self, *arguments: str, status: int = 0) -> str:
        """Run a program to its end; return what it printed."""
        done = subprocess.run(
            [*self._inside, *arguments], capture_output=True, text=True, check=False, cwd="/", stdin=subprocess.DEVNULL
        )
        assert done.returncode == status, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def running(self, *arguments: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a program for the length of a block, and let it end in its own way."""
        with log.open("wb") as stream:
            process = subprocess.Popen([*self._inside, *arguments], stdout=stream, stderr=stream, cwd="/")
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    def play(self, *arguments: str) -> str:
        """Run the role; return what Ansible said."""
        return self.run(
            "env", "ANSIBLE_NOCOLOR=1", "ANSIBLE_PIPELINING=1", "HOME=/root", "LC_ALL=C.UTF-8",
            need("ansible-playbook"), "--inventory=localhost,", "--connection=local", *arguments, str(PLAYBOOK),
        )  # fmt: skip


@contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    """Yield a machine whose changes lie below `directory` or in memory."""
    script = ["set -e", f"cp -a /etc {shlex.quote(str(directory))}/etc", f"mount --bind {directory}/etc /etc"]
    places = dict.fromkeys(Path(name) for name in (PROJECT, sys.prefix, sys.base_prefix))
    kept = [path for path in places if not path.is_relative_to("/usr")]
    for number, path in enumerate(kept):
        script += [f"mkdir {directory}/{number}", f"mount --bind {path} {directory}/{number}"]
    # What only root may walk through, such as its home, is laid bare as far as the program's own files lie there.
    closed = {next((one for one in reversed([*path.parents]) if not one.stat().st_mode & 1), None) for path in kept}
    script += [f"mkdir {directory}/lib", f"mount --bind /var/lib {directory}/lib", f"mount --rbind {directory} /mnt"]
    script += [f"mount -t tmpfs -o mode=0755 none {path}" for path in {Path("/opt"), *closed} if path is not None]
    script += [f"mount -t tmpfs -o mode=0755 none {path}" for path in ("/run", "/var/lib")]
    for number, path in enumerate(kept):
        script += [f"mkdir -p {path}", f"mountpoint -q {path} || mount --bind /mnt/{number} {path}"]
    # What apt knows is read by the role's trial.
    script += ["mkdir /var/lib/apt /var/lib/dpkg"]
    script += [f"mount --bind /mnt/lib/{name} /var/lib/{name}" for name in ("apt", "dpkg")]
    script += ["mkdir -p /opt/overhaul", f"mount --bind {sys.prefix} /opt/overhaul", "umount --lazy /mnt", "echo ready"]
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", "\n".join([*script, "exec cat"])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield Machine(holder)
        assert holder.stdin is not None
        holder.stdin.close()


def log_texts(directory: Path, names: Sequence[str]) -> str:
    """Return the ends of logs, for a failing test to show."""
    return "\n".join(f"--- {name}\n{(directory / f'{name}.log').read_text()[-3000:]}" for name in names)


def is_root() -> bool:
    """Tell whether namespaces and accounts can be made."""
    return os.geteuid() == 0
