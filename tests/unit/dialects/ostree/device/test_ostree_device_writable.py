"""A system root that is mounted read-only is written to by the updater, and by nobody else; on real mounts."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.tools import need

_PROGRAM = """
import os, sys
from pathlib import Path
from overhaul.dialects.ostree.device.mounts import SystemMounts
from overhaul.dialects.ostree.device.writable import make_writable

root = Path(sys.argv[1])
before = os.readlink("/proc/self/ns/mnt")
made = make_writable((root / "repo", root / "boot"), mounts=SystemMounts())
print([str(path.relative_to(root)) for path in made], os.readlink("/proc/self/ns/mnt") == before)
(root / "repo/new").write_text("new")
print(make_writable((root / "repo", root / "boot"), mounts=SystemMounts()))
shown = str(root).replace(" ", chr(92) + "040")
print("nosuid" in next(line for line in open("/proc/mounts") if f" {shown} " in line).split()[3])
"""
_SCRIPT = """
set -e
mount --bind "$1" "$1"
[ "$2" = read-only ] && mount -o remount,bind,ro,nosuid "$1" || mount -o remount,bind,nosuid "$1"
"$3" -c "$4" "$1"
touch "$1/repo/other" 2>/dev/null && echo writable || echo read-only
"""


@pytest.mark.parametrize(
    ("state", "said"),
    [("read-only", ["['.'] False", "[]", "True", "read-only"]), ("writable", ["[] True", "[]", "True", "writable"])],
)
def test_what_is_read_only_becomes_writable_for_the_updater_alone(tmp_path: Path, state: str, said: list[str]) -> None:
    tmp_path /= "with a blank"
    for name in ("repo", "boot"):
        (tmp_path / name).mkdir(parents=True)
    argv = [need("unshare"), "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "sh", str(tmp_path), state]
    done = subprocess.run([*argv, sys.executable, _PROGRAM], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout.splitlines()) == ("", said)
    assert (tmp_path / "repo/new").read_text() == "new"


_APART = """
import sys
from pathlib import Path
from overhaul.dialects.ostree.device.mounts import SystemMounts

place = Path(sys.argv[1])
mounts = SystemMounts()
mounts.stand_alone()
mounts.bind(place / "own", place / "hidden")
(place / "ready").write_text("")
(place / "go").read_text()
print((place / "late/seen").exists(), (place / "hidden/file").exists())
"""
_MOUNTS_LATER = """
set -e
cd "$1"
mount --make-rshared /
mkdir own hidden late
touch own/file
mkfifo ready go
"$2" -c "$3" "$1" &
cat ready
mount -t tmpfs tmpfs late
touch late/seen
: > go
wait $!
ls hidden
"""


def test_what_is_mounted_later_is_seen_and_what_the_updater_mounts_is_not(tmp_path: Path) -> None:
    argv = [need("unshare"), "--mount", "--propagation", "private", "sh", "-c", _MOUNTS_LATER, "sh", str(tmp_path)]
    done = subprocess.run([*argv, sys.executable, _APART], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stderr, done.stdout) == ("", "True True\n")
