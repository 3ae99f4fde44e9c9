"""The last step before a build's program: limits, control group and user namespace, then exec.

Run as a program of its own (`python -I -S _confine.py DOCUMENT PROGRAM...`) by `sandbox`, because none of this may be
done between fork and exec of a process that has threads. It imports nothing of ours, so that it starts at once.

The document is JSON: `limits` (name of an rlimit -> value), `groups` (control group directories to enter),
`first_id` and `ids` (range of ids that the user namespace maps from 0 on; `ids` 0 leaves the namespace to bubblewrap),
`places` (paths that are mounted on `/mnt/0`, `/mnt/1`, ... first, because the ids inside may not walk the way to them).
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
#: An empty directory that every system has; nothing outside this process's own view of it changes.
_PLACES = Path("/mnt")
_LIBC = ctypes.CDLL(None, use_errno=True)


def main(arguments: "list[str]") -> None:
    """Confine this process as the document says and become the program."""
    wanted = json.loads(arguments[0])
    for directory in wanted["groups"]:
        Path(directory, "cgroup.procs").write_text("0")
    if wanted["places"]:
        _mount_places(wanted["places"])
    if wanted["ids"]:
        _enter_user_namespace(wanted["first_id"], wanted["ids"])
    # After the namespace: the number of processes is counted in the one it is set in.
    for name, value in wanted["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    os.execv(arguments[1], arguments[1:])  # noqa: S606 - that is what this is for


def _mount_places(places: "list[str]") -> None:
    _checked(_LIBC.unshare(_CLONE_NEWNS), "mount namespace")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("places", str(_PLACES), "tmpfs", 0)
    _PLACES.chmod(0o755)
    for number, source in enumerate(places):
        place = _PLACES / str(number)
        if Path(source).is_dir():
            place.mkdir()
        else:
            place.touch()
        _mount(source, str(place), None, _MS_BIND)


def _mount(source: "str | None", target: str, kind: "str | None", flags: int) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _checked(_LIBC.mount(*encoded, ctypes.c_ulong(flags), None), f"mount of {source} on {target}")


def _checked(status: int, what: str) -> None:
    if status != 0:
        sys.exit(f"bwrap: {what}: {os.strerror(ctypes.get_errno())}")


def _enter_user_namespace(first: int, count: int) -> None:
    """Enter a new user namespace whose ids 0 to `count` are ours from `first` on.

    The map can only be written from outside, so a child waits until we are inside and writes it.
    """
    entered, done = os.pipe(), os.pipe()
    pid = os.getpid()
    child = os.fork()
    if child == 0:
        os.read(entered[0], 1)
        status = 1
        try:
            _write_maps(pid, first, count)
            status = 0
        finally:
            os.write(done[1], bytes([status]))
            os._exit(status)
    _checked(_LIBC.unshare(_CLONE_NEWUSER), "user namespace")
    os.write(entered[1], b"x")
    answer = os.read(done[0], 1)
    os.waitpid(child, 0)
    if answer != b"\0":
        sys.exit("bwrap: user namespace: the ids could not be mapped; see /etc/subuid and /etc/subgid")
    for descriptor in (*entered, *done):
        os.close(descriptor)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _write_maps(pid: int, first: int, count: int) -> None:
    if os.geteuid() == 0:
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 {first} {count}\n")
        return
    for program in ("newuidmap", "newgidmap"):
        subprocess.run([program, str(pid), "0", str(first), str(count)], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
