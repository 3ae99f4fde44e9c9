"""Where foreign code runs: a bubblewrap sandbox with nothing of the worker's in it, and an end to everything.

Inside are the host's programs read-only, the directories that the builder states, an empty `/tmp` and no network
unless the builder states it. There are no keys, no other builds, no home, no environment of the worker. The tree of
processes dies with the worker, with its time, and with the first limit it exceeds.

Limits are kept at three depths: rlimits of each process (`_confine`), a control group where this process may make
one (`cgroups`), and a watch over the whole tree of processes and its directories, which needs neither. The watch
looks several times a second, so what grows faster than that is stopped by the two others, and disk by the size of
single files.

Started as root, the sandbox gets a user namespace over ids that nobody else has (`FIRST_ID`), so its root is nobody
outside. Started as an ordinary user, bubblewrap makes the namespace; only `Sandbox.owners` (file trees of several
owners) then needs a range in /etc/subuid.
"""

import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from overhaul.builds import cgroups
from overhaul.errors import OperatorError
from overhaul.host.processes import ProgramMissingError, find_program

#: Where the ids begin that sandboxes started by root get; above those that adduser gives to people and containers.
FIRST_ID = 1_879_048_192
IDS = 65_536
_CONFINE = Path(__file__).with_name("_confine.py")
_TICK_S = 0.1
_DISK_TICK_S = 0.5
_PIECE_BYTES = 1 << 16
#: Left free on the disk whatever a build asks for.
_DISK_RESERVE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program in the sandbox, with all that it starts, may use."""

    time_s: float = 600.0
    #: Of all processors together.
    cpu_s: float = 3600.0
    memory_bytes: int = 3 << 30
    processes: int = 1024
    #: All files in the directories it may write to.
    disk_bytes: int = 8 << 30
    file_bytes: int = 4 << 30
    temporary_bytes: int = 512 << 20
    #: Kept of what it prints, of each stream; the rest is read and dropped.
    output_bytes: int = 4 << 20


class LimitExceededError(OperatorError):
    """The program used more than it may and was killed."""

    def __init__(self, *, limit: str, allowed: str) -> None:
        self.limit = limit
        self.allowed = allowed
        super().__init__(f"The build used more {limit} than the {allowed} it may and was stopped.")


class UnusableSandboxError(OperatorError):
    """No sandbox can be made here."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"Builds cannot be isolated here: {reason}. Install bubblewrap; in a container allow it to make user, "
            "mount, process and network namespaces (see docs/how-to/build-images-on-demand.md)."
        )


class Follower(Protocol):
    """Whoever hears what a program prints and may stop it."""

    def log(self, text: str) -> None:
        """Take a piece of its output."""

    def check(self) -> None:
        """Raise to stop it."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a program in the sandbox ended."""

    status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """A kind of place to run programs in."""

    #: Inside path -> directory or file of the host.
    read_only: Mapping[str, Path] = field(default_factory=dict)
    writable: Mapping[str, Path] = field(default_factory=dict)
    network: bool = False
    #: Whether files of many owners are made; otherwise everything runs as one ordinary user without any rights.
    owners: bool = False
    limits: Limits = field(default_factory=Limits)

    def run(
        self,
        argv: Sequence[str],
        *,
        directory: str,
        follower: Follower,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run a program to its end, and everything it started with it.

        Raises:
            LimitExceededError: It used too much.
            UnusableSandboxError: No sandbox can be made here.
        """
        with cgroups.group(memory_bytes=self.limits.memory_bytes, processes=self.limits.processes) as groups:
            process = self._start(argv, directory=directory, environment=environment or {}, groups=groups.directories)
            watch = _Watch(process.pid, self.limits, tuple(self.writable.values()))
            output = _Output(process, follower, self.limits.output_bytes)
            try:
                while not output.ended.wait(_TICK_S):
                    follower.check()
                    watch.look()
                process.wait()
            finally:
                # A process group of its own, so bubblewrap and what it has not isolated yet both go.
                _kill(process)
                output.join()
            watch.at_end(process.returncode, groups)
        if process.returncode == 1 and output.stderr.startswith(b"bwrap: "):
            raise UnusableSandboxError(reason=output.stderr.decode(errors="replace").strip())
        return Ended(status=process.returncode, stdout=bytes(output.stdout), stderr=bytes(output.stderr))

    def _places(self) -> tuple[Path, ...]:
        return (*self.read_only.values(), *self.writable.values())

    def _start(
        self, argv: Sequence[str], *, directory: str, environment: Mapping[str, str], groups: Sequence[Path]
    ) -> "subprocess.Popen[bytes]":
        is_root = os.geteuid() == 0
        if is_root:
            for path in self.writable.values():
                _give_to_sandbox(path)
        first, ids = (FIRST_ID, IDS) if is_root else (_subordinate_ids() if self.owners else (0, 0))
        document = {
            "limits": {
                "RLIMIT_CPU": int(self.limits.cpu_s),
                "RLIMIT_AS": max(self.limits.memory_bytes * 4, 8 << 30),
                "RLIMIT_NPROC": self.limits.processes,
                "RLIMIT_FSIZE": self.limits.file_bytes,
                "RLIMIT_CORE": 0,
                "RLIMIT_NOFILE": 4096,
            },
            "groups": [str(path) for path in groups],
            "places": [str(path.absolute()) for path in self._places()] if is_root else [],
            "first_id": first,
            "ids": ids,
        }
        try:
            bubblewrap = find_program("bwrap")
        except ProgramMissingError as error:
            raise UnusableSandboxError(reason="the program bwrap is not installed") from error
        command = [sys.executable, "-I", "-S", str(_CONFINE), msgspec.json.encode(document).decode(), bubblewrap]
        command += [
            *self._options(environment, has_range=bool(ids), is_root=is_root),
            "--chdir",
            directory,
            "--",
            *argv,
        ]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
            start_new_session=True,
        )

    def _options(self, environment: Mapping[str, str], *, has_range: bool, is_root: bool) -> list[str]:
        options = ["--die-with-parent", "--new-session", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        options += ["--unshare-cgroup-try", "--hostname", "build"]
        if not self.network:
            options.append("--unshare-net")
        if not (has_range and self.owners):
            options += ["--unshare-user", "--uid", "1000", "--gid", "1000", "--disable-userns", "--cap-drop", "ALL"]
        options += ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            path = Path("/", name)
            if path.is_symlink():
                options += ["--symlink", str(path.readlink()), str(path)]
            elif path.exists():
                options += ["--ro-bind", str(path), str(path)]
        options += ["--proc", "/proc", "--dev", "/dev", "--size", str(self.limits.temporary_bytes)]
        options += ["--tmpfs", "/tmp"]  # noqa: S108 - the one inside
        for name in _ETC + (_ETC_NETWORK if self.network else ()):
            options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        binds = [("--ro-bind", inside) for inside in self.read_only] + [("--bind", inside) for inside in self.writable]
        for number, ((option, inside), outside) in enumerate(zip(binds, self._places(), strict=True)):
            options += [option, f"/mnt/{number}" if is_root else str(outside), inside]
        variables = {"PATH": _PATH, "HOME": "/tmp", "LC_ALL": "C.UTF-8", **environment}  # noqa: S108 - inside
        options.append("--clearenv")
        for name, value in variables.items():
            options += ["--setenv", name, value]
        return options


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "passwd", "group", "nsswitch.conf", "localtime")
_ETC_NETWORK = ("resolv.conf", "hosts", "ssl/certs", "ca-certificates.conf", "gai.conf")


def check_sandbox() -> None:
    """Raise `UnusableSandboxError` when no sandbox can be made here; a worker asks before it takes a build."""
    ended = Sandbox(limits=Limits(time_s=30.0)).run(["true"], directory="/", follower=_Deaf())
    if ended.status != 0:
        reason = ended.stderr.decode(errors="replace").strip() or f"a test ended with status {ended.status}"
        raise UnusableSandboxError(reason=reason)


def remove_tree(directory: Path) -> None:
    """Remove what a build left, whatever rights it gave its directories."""
    for folder, _folders, _files in os.walk(directory):
        Path(folder).chmod(0o700)
    shutil.rmtree(directory)


class _Deaf:
    def log(self, text: str) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""


class _Output:
    """Reads both streams of a program until both have ended, keeping only so much."""

    def __init__(self, process: "subprocess.Popen[bytes]", follower: Follower, limit: int) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.ended = threading.Event()
        self._process = process
        self._follower = follower
        self._limit = limit
        self._thread = threading.Thread(target=self._read, name="build-output", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of both streams."""
        self._thread.join()

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            assert self._process.stdout is not None  # noqa: S101 - both are pipes
            assert self._process.stderr is not None  # noqa: S101
            selector.register(self._process.stdout, selectors.EVENT_READ, self.stdout)
            selector.register(self._process.stderr, selectors.EVENT_READ, self.stderr)
            while selector.get_map():
                for key, _events in selector.select():
                    piece = os.read(key.fd, _PIECE_BYTES)
                    if not piece:
                        selector.unregister(key.fileobj)
                    kept = piece[: max(0, self._limit - len(key.data))]
                    key.data.extend(kept)
                    if kept:
                        self._tell(kept)
        self._process.stdout.close()
        self._process.stderr.close()
        self.ended.set()

    def _tell(self, piece: bytes) -> None:
        try:
            self._follower.log(piece.decode(errors="replace"))
        except Exception:
            # A log that cannot be kept must not fill the pipe and stop the build; `check` ends it when it matters.
            return


class _Watch:
    """Looks at a tree of processes and its directories."""

    def __init__(self, pid: int, limits: Limits, directories: Sequence[Path]) -> None:
        self._pid = pid
        self._limits = limits
        self._directories = directories
        self._began = time.monotonic()
        self._next_disk = 0.0

    def look(self) -> None:
        """Raise `LimitExceededError` when something is used up."""
        now = time.monotonic()
        if now - self._began > self._limits.time_s:
            raise LimitExceededError(limit="time", allowed=f"{self._limits.time_s:g} s")
        tree = _processes(self._pid)
        if sum(one.memory_bytes for one in tree) > self._limits.memory_bytes:
            raise self._memory()
        if sum(one.cpu_s for one in tree) > self._limits.cpu_s:
            raise LimitExceededError(limit="processor time", allowed=f"{self._limits.cpu_s:g} s")
        if now >= self._next_disk:
            self._look_at_disk()
            self._next_disk = time.monotonic() + _DISK_TICK_S

    def at_end(self, status: int | None, groups: cgroups.Group) -> None:
        """Raise what the kernel stopped the program for, if that was it, or what it managed to write at last."""
        if groups.out_of_memory():
            raise self._memory()
        if status in {128 + signal.SIGXCPU, -signal.SIGXCPU}:
            raise LimitExceededError(limit="processor time", allowed=f"{self._limits.cpu_s:g} s")
        self._look_at_disk()

    def _memory(self) -> LimitExceededError:
        return LimitExceededError(limit="memory", allowed=f"{self._limits.memory_bytes >> 20} MiB")

    def _look_at_disk(self) -> None:
        used = 0
        for directory in self._directories:
            used += _disk_bytes(directory)
            status = os.statvfs(directory)
            if used > self._limits.disk_bytes or status.f_bavail * status.f_frsize < _DISK_RESERVE_BYTES:
                raise LimitExceededError(limit="disk", allowed=f"{self._limits.disk_bytes >> 20} MiB")


@dataclass(frozen=True, kw_only=True)
class _Process:
    memory_bytes: int
    cpu_s: float


_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def _processes(root: int) -> list[_Process]:
    """Return `root` and all its descendants; orphans stay below it, because the namespace has an init of its own."""
    found = []
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_bytes().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        times = sum(int(value) for value in fields[11:15])  # its own and those of children it has waited for
        found.append(_Process(memory_bytes=int(fields[21]) * _PAGE, cpu_s=times / _TICKS))
    return found


def _disk_bytes(directory: Path) -> int:
    used = 0
    for folder, _folders, names in os.walk(directory):
        for name in names:
            try:
                used += (Path(folder) / name).lstat().st_blocks * 512
            except FileNotFoundError:
                continue
    return used


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _give_to_sandbox(path: Path) -> None:
    if path.stat().st_uid < FIRST_ID:
        os.chown(path, FIRST_ID, FIRST_ID)


def _subordinate_ids() -> tuple[int, int]:
    """Return the range of ids that an ordinary user was given."""
    names = {str(os.getuid()), os.environ.get("USER", "")}
    try:
        lines = Path("/etc/subuid").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if name in names and first.isdecimal() and count.isdecimal() and int(count) >= IDS:
            return int(first), IDS
    raise UnusableSandboxError(reason=f"this user has no {IDS} ids in /etc/subuid and /etc/subgid")
