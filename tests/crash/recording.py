"""Recording what real programs do to a directory: every write, new length, name and sync, with all bytes.

The program and all its children (such as `fw_setenv`) run under `strace`, whose log becomes the operations of
`tests.crash.disk`. Nothing of the program is replaced, so nothing can be left out by a mistake in a double. After
each run the recorded operations are applied to the tree as it was before, and the result must be the tree that is
there, byte for byte: a call that is not understood here fails the recording and is never passed over.
"""

import re
import subprocess
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.disk import ROOT, Content, Naming, Operation, Place, Recording, Resize, Sync, SyncAll, Write
from tests.tools import need

_CALLS = (
    "open,openat,creat,lseek,write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,splice,"
    "truncate,ftruncate,fallocate,ioctl,mmap,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,"
    "mkdir,mkdirat,rmdir,mknod,mknodat,fsync,fdatasync,sync,syncfs,sync_file_range,io_uring_setup"
)
_LINE = re.compile(r"\d+\s+(\w+)\((.*)\)\s+= (\S+)")
_DESCRIPTOR = re.compile(r"(-?\d+|AT_FDCWD)(?:<([^>]*)>)?")
_HEX = re.compile(r"\\x([0-9a-f]{2})")
_MAX_BYTES = 64 << 20


class NotUnderstoodError(AssertionError):
    """A recorded call whose effect on the disk is not known here."""


@dataclass(frozen=True)
class _Call:
    name: str
    arguments: tuple[str, ...]
    result: str


@dataclass
class Recorder:
    """Records programs that work below `top`; names in `weak` directories are not renamed at once."""

    top: Path
    weak: Collection[str] = ()
    #: What lies below these paths decides nothing.
    scratch: tuple[str, ...] = ()
    recording: Recording = field(init=False)

    def __post_init__(self) -> None:
        self.top = self.top.resolve()
        self.recording = Recording.of(self.top)
        self._names = {directory: dict(children) for directory, children in self.recording.names.items()}
        self._live = {
            inode: bytearray(content.data) for inode, content in self.recording.inodes.items() if content is not None
        }
        self._weak = {self._inode(self.top / path) for path in self.weak}
        self._offsets: dict[tuple[str, int], int] = {}
        self._flags: dict[tuple[str, int], str] = {}
        self._halves: dict[str, str] = {}

    def run(self, argv: Sequence[str | Path], *, log: Path, statuses: Collection[int] = (0,)) -> None:
        """Run a program to its end and note what it did; its exit status must be one of `statuses`."""
        calls = ",".join(f"?{name}" for name in _CALLS.split(","))
        options = (
            "--seccomp-bpf",
            "-f",
            "-y",
            "-xx",
            "-s",
            str(_MAX_BYTES),
            "-e",
            f"trace={calls}",
            "-e",
            "signal=none",
        )
        strace = [need("strace"), *options, "-o", str(log), *map(str, argv)]
        done = subprocess.run(strace, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode in statuses, f"{argv} ended with {done.returncode}: {done.stderr[-2000:]}"
        with log.open() as lines:
            for line in lines:
                self._take(line)
        log.unlink()
        self._require_exact()

    def killed_at(self, point: int) -> "Recorder":
        """Return a recorder whose program was killed before operation `point`, with the tree laid out as it is then.

        No power was cut: all that was done is there, and what was not synced is still not durable.
        """
        Place(self.top).lay(self.recording.tree(0, {}))
        other = Recorder(self.top, weak=self.weak, scratch=self.scratch)
        other.recording.inodes.update(self.recording.inodes)
        for inode, content in self.recording.inodes.items():
            if content is None:
                other._names.setdefault(inode, {})
            elif not content.is_link:
                other._live.setdefault(inode, bytearray(content.data))
        other.recording.names = self.recording.names
        other._names = {directory: dict(children) for directory, children in self.recording.names.items()} | {
            inode: {} for inode in other._names if inode not in self.recording.names
        }
        for operation, label in zip(self.recording.operations[:point], self.recording.labels, strict=False):
            other._note(operation, label)
        Place(self.top).lay(self.recording.tree(point, {}))
        other.recording.labels = [*other.recording.labels]
        return other

    def _require_exact(self) -> None:
        recorded = self.recording.tree(len(self.recording.operations), {})
        there = Recording.of(self.top).tree(0, {})
        assert set(recorded) == set(there), f"not recorded: the names {sorted(set(recorded) ^ set(there))}"
        wrong = [path for path, content in there.items() if recorded[path] != content]
        assert not wrong, f"not recorded wholly: what was written to {wrong}"

    def _take(self, line: str) -> None:
        line = self._joined(line)
        matched = _LINE.match(line)
        if matched is None:
            return
        call = _Call(matched[1], tuple(matched[2].split(", ")), matched[3])
        handler = _HANDLERS.get(call.name)
        if call.result.startswith("-1") or call.result == "?":
            return
        if handler is not None:
            handler(self, call)
        elif self._mentions(call):
            raise NotUnderstoodError(line[:300])

    def _joined(self, line: str) -> str:
        """Put together a call that strace shows in two halves because another thread called in between."""
        process = line.split(" ", 1)[0]
        if "<unfinished ...>" in line:
            self._halves[process] = line.split(" <unfinished ...>", maxsplit=1)[0].rstrip("\n")
            return ""
        resumed = re.search(r"<\.\.\. \w+ resumed>", line)
        return line if resumed is None else self._halves.pop(process) + line[resumed.end() :]

    def _mentions(self, call: _Call) -> bool:
        return any(f"{self.top}/" in _decoded(text) for text in (*call.arguments, call.result))

    # What a call names.

    def _path(self, call: _Call, index: int, *, at: int | None = None) -> Path:
        path = Path(_decoded(call.arguments[index]).strip('"'))
        if not path.is_absolute():
            matched = None if at is None else _DESCRIPTOR.match(call.arguments[at])
            if matched is None or matched[2] is None:
                return Path("/unknown") / path
            path = Path(_decoded(matched[2])) / path
        return path

    def _place(self, path: Path) -> tuple[int, str] | None:
        """Return the directory and the name of a path below `top`, or None for any other."""
        if not path.is_relative_to(self.top) or path == self.top:
            return None
        parent = self._inode(path.parent)
        if parent is None:
            raise NotUnderstoodError(f"{path} lies in a directory that was never made")
        return parent, path.name

    def _inode(self, path: Path) -> int | None:
        if not path.is_relative_to(self.top):
            return None
        inode = ROOT
        for part in path.relative_to(self.top).parts:
            found = self._names.get(inode, {}).get(part)
            if found is None:
                return None
            inode = found
        return inode

    def _opened(self, text: str) -> tuple[str, int] | None:
        """Return the descriptor and the inode in an argument, or None for a file that is not ours or has no name."""
        matched = _DESCRIPTOR.match(text)
        if matched is None or matched[2] is None or "(deleted)" in text:
            return None
        path = _decoded(matched[2])
        inode = None if path.endswith(" (deleted)") else self._inode(Path(path))
        return None if inode is None else (matched[1], inode)

    # What a call does.

    def _note(self, operation: Operation, label: str) -> None:
        match operation:
            case Write(inode=inode, offset=offset, data=data):
                live = self._live[inode]
                live.extend(bytes(max(0, offset + len(data) - len(live))))
                live[offset : offset + len(data)] = data
            case Resize(inode=inode, size=size):
                live = self._live[inode]
                del live[size:]
                live.extend(bytes(size - len(live)))
            case Naming(changes=changes):
                for directory, name, target in changes:
                    if target is None:
                        self._names[directory].pop(name, None)
                    else:
                        self._names.setdefault(directory, {})[name] = target
        if any(f" {path}" in label for path in self.scratch):
            self.recording.scratch.add(len(self.recording.operations))
        self.recording.add(operation, label)

    def _rename_all(self, changes: Sequence[tuple[int, str, int | None]], label: str) -> None:
        if any(directory in self._weak for directory, _name, _target in changes):
            # The new name is written before the old one is removed.
            for change in changes:
                self._note(Naming((change,)), f"{label} (half)" if len(changes) > 1 else label)
        else:
            self._note(Naming(tuple(changes)), label)

    def _new_inode(self, content: Content | None) -> int:
        inode = len(self.recording.inodes)
        self.recording.inodes[inode] = content
        if content is None:
            self._names[inode] = {}
        elif not content.is_link:
            self._live[inode] = bytearray()
        return inode

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self.top))

    def _open(self, call: _Call) -> None:
        flags = call.arguments[-1] if call.name == "open" else call.arguments[2] if len(call.arguments) > 2 else ""
        if call.name == "open" and "O_CREAT" in ", ".join(call.arguments):
            flags = call.arguments[1]
        matched = _DESCRIPTOR.match(call.result)
        if matched is None or matched[2] is None or not Path(_decoded(matched[2])).is_relative_to(self.top):
            return
        if "O_TMPFILE" in flags:
            if "O_EXCL" in flags:
                # Never gets a name, so no power cut leaves anything of it.
                return
            raise NotUnderstoodError(f"{call}")
        path = Path(_decoded(matched[2]))
        inode = self._inode(path)
        if inode is None:
            if "O_CREAT" not in flags:
                raise NotUnderstoodError(f"{path} was opened and never made")
            place = self._place(path)
            assert place is not None
            inode = self._new_inode(Content(b""))
            self._note(Naming(((*place, inode),)), f"create {self._shown(path)}")
        elif "O_TRUNC" in flags and self._live[inode]:
            self._note(Resize(inode, 0), f"truncate {self._shown(path)} when opening it")
        self._offsets[matched[1], inode] = 0
        self._flags[matched[1], inode] = flags

    def _seek(self, call: _Call) -> None:
        opened = self._opened(call.arguments[0])
        if opened is not None:
            self._offsets[opened] = int(call.result)

    def _write(self, call: _Call) -> None:
        opened = self._opened(call.arguments[0])
        if opened is None:
            return
        text = call.arguments[1]
        if not text.endswith('"'):
            raise NotUnderstoodError(f"{call.name} with more bytes than strace shows")
        data = bytes.fromhex("".join(_HEX.findall(text)))[: int(call.result)]
        if call.name == "pwrite64":
            self._put(opened, int(call.arguments[3]), data)
            return
        is_appending = "O_APPEND" in self._flags.get(opened, "")
        offset = len(self._live[opened[1]]) if is_appending else self._offsets.get(opened, 0)
        self._put(opened, offset, data)
        self._offsets[opened] = offset + len(data)

    def _copy(self, call: _Call) -> None:
        """Note `sendfile` and `copy_file_range`, whose bytes are those that the source held by then."""
        amount = int(call.result)
        if call.name == "sendfile":
            to, of, offsets = call.arguments[0], call.arguments[1], ("", call.arguments[2])
        else:
            to, of, offsets = call.arguments[2], call.arguments[0], (call.arguments[3], call.arguments[1])
        opened = self._opened(to)
        if opened is None or not amount:
            return
        source = self._opened(of)
        begin = _explicit(offsets[1])
        if begin is None:
            begin = self._offsets.get(source, 0) if source is not None else None
        if begin is None:
            raise NotUnderstoodError(f"{call} from where the file of another directory stands")
        if source is not None:
            data = bytes(self._live[source[1]][begin : begin + amount])
            self._offsets[source] = begin + amount
        else:
            matched = _DESCRIPTOR.match(of)
            assert matched is not None
            data = Path(_decoded(matched[2])).read_bytes()[begin : begin + amount]
        offset = _explicit(offsets[0])
        if offset is None:
            offset = self._offsets.get(opened, 0)
            self._offsets[opened] = offset + amount
        self._put(opened, offset, data)

    def _put(self, opened: tuple[str, int], offset: int, data: bytes) -> None:
        inode = opened[1]
        if not data:
            return
        self._note(Write(inode, offset, data), f"write {len(data)} bytes at {offset} of {self._name_of(inode)}")
        if "SYNC" in self._flags.get(opened, ""):
            self._note(Sync(inode), f"written through to {self._name_of(inode)}")

    def _name_of(self, wanted: int) -> str:
        if wanted == ROOT:
            return "."
        for directory, children in self._names.items():
            for name, inode in children.items():
                if inode == wanted:
                    above = self._name_of(directory)
                    return name if above == "." else f"{above}/{name}"
        return f"file {wanted}"

    def _resize(self, call: _Call) -> None:
        if call.name == "truncate":
            inode = self._inode(self._path(call, 0))
        else:
            opened = self._opened(call.arguments[0])
            inode = None if opened is None else opened[1]
        if inode is not None and len(self._live[inode]) != int(call.arguments[1]):
            self._note(Resize(inode, int(call.arguments[1])), f"truncate {self._name_of(inode)}")

    def _allocate(self, call: _Call) -> None:
        opened = self._opened(call.arguments[0])
        if opened is None:
            return
        inode, (offset, size) = opened[1], map(int, call.arguments[2:4])
        if "PUNCH_HOLE" in call.arguments[1] or "ZERO_RANGE" in call.arguments[1]:
            size = min(size, len(self._live[inode]) - offset)
            self._note(Write(inode, offset, bytes(size)), f"zero {size} bytes at {offset} of {self._name_of(inode)}")
        elif call.arguments[1] == "0":
            if offset + size > len(self._live[inode]):
                self._note(Resize(inode, offset + size), f"allocate {self._name_of(inode)}")
        else:
            raise NotUnderstoodError(f"{call}")

    def _rename(self, call: _Call) -> None:
        if call.name == "rename":
            old, new = self._path(call, 0), self._path(call, 1)
        else:
            old, new = self._path(call, 1, at=0), self._path(call, 3, at=2)
        source, target = self._place(old), self._place(new)
        if source is None and target is None:
            return
        is_plain = call.name != "renameat2" or call.arguments[4] in ("0", "RENAME_NOREPLACE")
        if source is None or target is None or not is_plain:
            raise NotUnderstoodError(f"{call}")
        inode = self._names[source[0]][source[1]]
        label = f"rename {self._shown(old)} to {self._shown(new)}"
        self._rename_all([(*target, inode), (*source, None)], label)

    def _link(self, call: _Call) -> None:
        if call.name == "link":
            old, new = self._path(call, 0), self._path(call, 1)
        else:
            old, new = self._path(call, 1, at=0), self._path(call, 3, at=2)
        target = self._place(new)
        if target is None:
            return
        inode = self._inode(old)
        if inode is None:
            raise NotUnderstoodError(f"{call}")
        self._note(Naming(((*target, inode),)), f"link {self._shown(old)} as {self._shown(new)}")

    def _symlink(self, call: _Call) -> None:
        new = self._path(call, 1) if call.name == "symlink" else self._path(call, 2, at=1)
        target = self._place(new)
        if target is not None:
            leads_to = _decoded(call.arguments[0]).strip('"')
            inode = self._new_inode(Content(leads_to.encode(), is_link=True))
            self._note(Naming(((*target, inode),)), f"symlink {self._shown(new)}")

    def _remove(self, call: _Call) -> None:
        path = self._path(call, 1, at=0) if call.name == "unlinkat" else self._path(call, 0)
        place = self._place(path)
        if place is not None:
            self._note(Naming(((*place, None),)), f"remove {self._shown(path)}")

    def _make_directory(self, call: _Call) -> None:
        path = self._path(call, 1, at=0) if call.name == "mkdirat" else self._path(call, 0)
        place = self._place(path)
        if place is not None:
            self._note(Naming(((*place, self._new_inode(None)),)), f"make directory {self._shown(path)}")

    def _sync(self, call: _Call) -> None:
        opened = self._opened(call.arguments[0])
        if opened is not None:
            self._note(Sync(opened[1]), f"sync {self._name_of(opened[1])}")

    def _sync_all(self, call: _Call) -> None:
        if call.name == "sync" or self._opened(call.arguments[0]) is not None:
            self._note(SyncAll(), call.name)

    def _map(self, call: _Call) -> None:
        if "PROT_WRITE" in call.arguments[2] and "MAP_SHARED" in call.arguments[3] and self._mentions(call):
            raise NotUnderstoodError("a shared mapping that can be written")

    def _control(self, call: _Call) -> None:
        if "CLONE" in call.arguments[1] or "ZEROOUT" in call.arguments[1]:
            raise NotUnderstoodError(f"{call}")

    def _nothing(self, call: _Call) -> None:
        pass


def _decoded(text: str) -> str:
    return bytes.fromhex("".join(_HEX.findall(text))).decode() if "\\x" in text else text


def _explicit(text: str) -> int | None:
    matched = re.match(r"\[(\d+)\]", text)
    return None if matched is None else int(matched[1])


_HANDLERS: dict[str, Callable[[Recorder, _Call], None]] = {
    **dict.fromkeys(("open", "openat", "creat"), Recorder._open),
    **dict.fromkeys(("write", "pwrite64"), Recorder._write),
    **dict.fromkeys(("sendfile", "copy_file_range"), Recorder._copy),
    **dict.fromkeys(("truncate", "ftruncate"), Recorder._resize),
    **dict.fromkeys(("rename", "renameat", "renameat2"), Recorder._rename),
    **dict.fromkeys(("link", "linkat"), Recorder._link),
    **dict.fromkeys(("symlink", "symlinkat"), Recorder._symlink),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), Recorder._remove),
    **dict.fromkeys(("mkdir", "mkdirat"), Recorder._make_directory),
    **dict.fromkeys(("fsync", "fdatasync"), Recorder._sync),
    **dict.fromkeys(("sync", "syncfs"), Recorder._sync_all),
    # No promise of durability is made by it.
    "sync_file_range": Recorder._nothing,
    "lseek": Recorder._seek,
    "fallocate": Recorder._allocate,
    "mmap": Recorder._map,
    "ioctl": Recorder._control,
}
