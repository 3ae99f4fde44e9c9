"""What foreign code can and cannot do in the sandbox; bubblewrap is the real one."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import nullcontext
from pathlib import Path

import pytest
from tests.tools import need
from tests.waiting import until

from overhaul.builds import cgroups, sandbox
from overhaul.builds.sandbox import Ended, LimitExceededError, Limits, Sandbox, UnusableSandboxError, check_sandbox
from overhaul.host.processes import ProgramMissingError

MIB = 1 << 20
#: What only a failure takes.
_PATIENCE_S = 300.0


class Ear:
    """Hears a program, and can stop it."""

    def __init__(self, *, stop_at: str = "\0") -> None:
        self.heard = ""
        self._stop_at = stop_at

    def log(self, text: str) -> None:
        self.heard += text

    def check(self) -> None:
        if self._stop_at in self.heard:
            raise KeyError("stopped")


@pytest.fixture(autouse=True)
def _bubblewrap() -> None:
    need("bwrap")


def _run(work: Path, *argv: str, limits: Limits | None = None, ear: Ear | None = None, owners: bool = False) -> Ended:
    work.mkdir(exist_ok=True)
    place = Sandbox(writable={"/work": work}, limits=limits or Limits(time_s=_PATIENCE_S), owners=owners)
    return place.run(argv, directory="/work", follower=ear or Ear())


def _python(text: str) -> tuple[str, ...]:
    return ("/usr/bin/python3", "-c", textwrap.dedent(text))


def test_what_a_program_says_and_how_it_ends_come_back(tmp_path: Path) -> None:
    ear = Ear()
    ended = _run(tmp_path / "w", "sh", "-c", "echo out; echo err >&2; echo made > file; exit 7", ear=ear)

    assert (ended.status, ended.stdout, ended.stderr) == (7, b"out\n", b"err\n")
    assert sorted(ear.heard.split()) == ["err", "out"]
    assert (tmp_path / "w/file").read_text() == "made\n"
    check_sandbox()


def test_nothing_of_the_worker_is_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "key.pem"
    secret.write_text("secret")
    monkeypatch.setenv("OVERHAUL_SECRET", "secret")
    ended = _run(
        tmp_path / "w",
        "sh", "-c",
        f"env; cat {secret}; ls /root /home /var /run /sys; cat /etc/shadow; echo x > /usr/x; echo pids /proc/[0-9]*",
    )  # fmt: skip

    assert b"secret" not in ended.stdout
    assert b"OVERHAUL" not in ended.stdout
    for place in (str(secret).encode(), b"/root", b"/home", b"/var", b"/run", b"/sys", b"/etc/shadow"):
        assert place in ended.stderr
    assert b"Read-only file system" in ended.stderr
    pids = ended.stdout.rpartition(b"pids ")[2].split()
    assert 1 <= len(pids) < 6
    assert set(os.environ) & {"OVERHAUL_SECRET"}


def test_there_is_no_network(tmp_path: Path) -> None:
    listening = """
        import socket
        print([name for _number, name in socket.if_nameindex()])
        try:
            socket.create_connection(("192.0.2.1", 80), timeout=2)
        except OSError as error:
            print(error.strerror)
    """
    ended = _run(tmp_path / "w", *_python(listening))

    assert ended.stdout == b"['lo']\nNetwork is unreachable\n"


def test_the_loopback_of_the_host_is_another_one(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = _run(
            tmp_path / "w", *_python(f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5)")
        )

    assert b"refused" in ended.stderr


def test_there_are_no_rights_inside(tmp_path: Path) -> None:
    ended = _run(
        tmp_path / "w",
        "sh",
        "-c",
        "id -u; grep CapEff /proc/self/status; unshare -U true; mount -t tmpfs x /tmp; mknod n c 1 3",
    )

    assert ended.stdout.split() == [b"1000", b"CapEff:", b"0000000000000000"]
    assert ended.status != 0
    assert not (tmp_path / "w/n").exists()


def test_root_inside_is_nobody_outside(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        need("newuidmap")
    ended = _run(tmp_path / "w", "sh", "-c", "id -u; touch mine other; chown 33:33 other", owners=True)

    assert ended.stdout == b"0\n"
    mine, other = (tmp_path / "w/mine").stat().st_uid, (tmp_path / "w/other").stat().st_uid
    assert mine >= 65536
    assert other == mine + 33


def test_time_ends(tmp_path: Path) -> None:
    with pytest.raises(LimitExceededError) as refusal:
        _run(tmp_path / "w", "sleep", "1000", limits=Limits(time_s=0.3))

    assert refusal.value.limit == "time"


def test_processor_time_of_all_children_ends(tmp_path: Path) -> None:
    # When each loop has used its own time before anybody looks, the sum of them is still there to be seen.
    loop = "while :; do :; done & " * 3 + "wait; sleep 1000"
    with pytest.raises(LimitExceededError) as refusal:
        _run(tmp_path / "w", "sh", "-c", loop, limits=Limits(time_s=_PATIENCE_S, cpu_s=1.0))

    assert refusal.value.limit == "processor time"


@pytest.mark.parametrize("with_groups", [True, False])
def test_memory_of_many_small_processes_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_groups: bool
) -> None:
    """Each stays below any limit of one process."""
    if not with_groups:
        monkeypatch.setattr(cgroups, "group", lambda **_limits: nullcontext(cgroups.Group()))
    eat = """
        import os, time
        for _ in range(8):
            if os.fork() == 0:
                held = bytearray(b"x" * (20 << 20))
                time.sleep(1000)
        time.sleep(1000)
    """
    with pytest.raises(LimitExceededError) as refusal:
        _run(tmp_path / "w", *_python(eat), limits=Limits(time_s=_PATIENCE_S, memory_bytes=100 * MIB))

    assert refusal.value.limit == "memory"


def test_a_fork_bomb_runs_into_the_limit_and_dies_whole(tmp_path: Path) -> None:
    bomb = """
        import os, sys, time
        made = 0
        for _ in range(1000):
            try:
                if os.fork() == 0:
                    time.sleep(600)
                    os._exit(0)
                made += 1
            except OSError:
                break
        print(made, flush=True)
        time.sleep(600)
    """
    ear = Ear(stop_at="\n")
    with pytest.raises(KeyError):
        _run(tmp_path / "w", *_python(bomb), limits=Limits(time_s=_PATIENCE_S, processes=40), ear=ear)

    assert 5 < int(ear.heard) < 40
    assert not _still_in(tmp_path / "w")


def test_a_full_disk_is_stopped(tmp_path: Path) -> None:
    fill = "i=0; while :; do head -c 1000000 /dev/zero > f$i; i=$((i+1)); done"
    with pytest.raises(LimitExceededError) as refusal:
        _run(tmp_path / "w", "sh", "-c", fill, limits=Limits(time_s=_PATIENCE_S, disk_bytes=20 * MIB))
    assert refusal.value.limit == "disk"

    ended = _run(tmp_path / "v", "sh", "-c", "head -c 5000000 /dev/zero > f", limits=Limits(file_bytes=MIB))
    assert ended.status != 0
    assert (tmp_path / "v/f").stat().st_size == MIB

    ended = _run(tmp_path / "v", "sh", "-c", "head -c 5000000 /dev/zero > /tmp/f", limits=Limits(temporary_bytes=MIB))
    assert b"No space left" in ended.stderr


def test_what_was_written_in_the_last_moment_counts_too(tmp_path: Path) -> None:
    with pytest.raises(LimitExceededError):
        _run(tmp_path / "w", "sh", "-c", "head -c 5000000 /dev/zero > f", limits=Limits(disk_bytes=MIB))


def test_a_flood_of_output_neither_stops_the_build_nor_fills_memory(tmp_path: Path) -> None:
    ear = Ear()
    ended = _run(
        tmp_path / "w",
        "sh",
        "-c",
        "head -c 30000000 /dev/zero | tr '\\0' y; echo end >&2",
        limits=Limits(output_bytes=1000),
        ear=ear,
    )

    assert (ended.status, len(ended.stdout), ended.stderr) == (0, 1000, b"end\n")
    assert len(ear.heard) == 1004


def test_whoever_follows_can_stop_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        _run(tmp_path / "w", "sh", "-c", "echo begun; sleep 1000", ear=Ear(stop_at="begun"))
    assert not _still_in(tmp_path / "w")


def test_everything_dies_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    """A leased build goes to another worker, so nothing of the first may go on."""
    script = f"""
from pathlib import Path
from overhaul.builds.sandbox import Sandbox
class Ear:
    def log(self, text): print(text, end="", flush=True)
    def check(self): pass
work = Path({str(tmp_path / "w")!r})
work.mkdir()
Sandbox(writable={{"/work": work}}).run(
    ["sh", "-c", "(setsid sleep 600 &) ; echo begun; while :; do date > alive; sleep 0.01; done"],
    directory="/work", follower=Ear(),
)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"begun\n"
        assert _still_in(tmp_path / "w")
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        # The pipe ends when the last process inside has died.
        assert worker.stdout.read() == b""
    until(lambda: not _still_in(tmp_path / "w"))


def test_without_bubblewrap_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(program: str) -> str:
        raise ProgramMissingError(program=program)

    monkeypatch.setattr(sandbox, "find_program", missing)
    with pytest.raises(UnusableSandboxError, match="bwrap"):
        check_sandbox()


def test_where_namespaces_are_forbidden_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that says what bubblewrap says under a container's default seccomp profile."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        refusing = Path(directory, "bwrap")
        refusing.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
        refusing.chmod(0o755)
        monkeypatch.setattr(sandbox, "find_program", lambda _program: str(refusing))
        with pytest.raises(UnusableSandboxError, match="No permissions"):
            check_sandbox()


def test_a_delegated_group_of_version_2_gets_the_limits(tmp_path: Path) -> None:
    """A stand-in for the kernel's directory: this machine's controllers may be bound to version 1."""
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    (tmp_path / "worker.service/main").mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("0::/worker.service/main\n")
    with cgroups.group(memory_bytes=1000, processes=7, root=tmp_path, own=own) as made:
        [directory] = made.directories
        assert directory.parent == tmp_path / "worker.service"
        assert (directory / "memory.max").read_text() == "1000"
        assert (directory / "pids.max").read_text() == "7"
        assert not made.out_of_memory()
        (directory / "memory.events").write_text("low 0\noom_kill 1\n")
        assert made.out_of_memory()


def test_a_worker_moves_into_a_leaf_of_the_group_that_is_delegated_to_it(tmp_path: Path) -> None:
    """A stand-in for the kernel's directory, as above; the attribute is the one that systemd sets."""
    unit = tmp_path / "system.slice/asu-worker.service"
    unit.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/other\n0::/system.slice/asu-worker.service\n")
    assert not cgroups.settle(root=tmp_path, own=own), "version 1"
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    assert not cgroups.settle(root=tmp_path, own=own), "not delegated"
    assert not list(unit.iterdir())
    os.setxattr(unit, "trusted.delegate" if os.geteuid() == 0 else "user.delegate", b"1")

    assert cgroups.settle(root=tmp_path, own=own)

    assert (unit / "worker/cgroup.procs").read_text() == "0"
    assert (unit / "cgroup.subtree_control").read_text() == "+memory +pids"
    own.write_text("0::/system.slice/asu-worker.service/worker\n")
    assert not cgroups.settle(root=tmp_path, own=own), "it is there already"
    with cgroups.group(memory_bytes=1000, processes=7, root=tmp_path, own=own) as made:
        assert [directory.parent for directory in made.directories] == [unit]


def test_without_any_right_to_groups_there_is_none(tmp_path: Path) -> None:
    with cgroups.group(memory_bytes=1000, processes=7, root=tmp_path, own=tmp_path / "none") as made:
        assert made.directories == ()
        assert not made.out_of_memory()


def _still_in(work: Path) -> list[str]:
    """Return the processes whose working directory is `work`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").samefile(work):
                found.append(process.name)
        except OSError:
            continue
    return found
