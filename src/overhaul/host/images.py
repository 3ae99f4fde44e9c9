"""Taking the files out of images: a partition of a disk, a file system, or a tar becomes a directory tree.

Partition tables (GPT, MBR with logical partitions) are read here, and file systems by programs that need no mount:
debugfs for ext2 to ext4, unsquashfs for squashfs. Only for others a mount is tried, which takes root. Owners can be
given away by root only (or under fakeroot), and a tree without them is another tree, so that is asked for first.
"""

import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from overhaul.errors import InputError, OperatorError
from overhaul.host.processes import ProgramFailedError, run

_SECTOR_SIZES = (512, 4096)
_GPT_MAGIC = b"EFI PART"
_MBR_MARK = b"\x55\xaa"
_MBR_ENTRY = struct.Struct("<B3sB3sII")
_EXTENDED = frozenset({0x05, 0x0F, 0x85})
_PARTITIONS_MAX = 1024
_FIRST_LOGICAL = 5
_EXT_NEEDS_RECOVERY = 0x4
_TAR_MAGIC_AT = 257
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_EA_LINE = re.compile(rb"  (\S+) \((\d+)\)(?: = .*)?")
_MODE_LINE = re.compile(rb"\bMode: +(0[0-7]+)\b")
#: Seconds, and where inodes have room: two more bits of them below 30 bits of nanoseconds.
_TIME_LINE = re.compile(rb" ?mtime: 0x([0-9a-f]{8})(?::([0-9a-f]{8}))? ")


class UnreadableImageError(InputError):
    """An image whose files cannot be taken out."""

    def __init__(self, *, image: Path, reason: str) -> None:
        self.image = image
        self.reason = reason
        super().__init__(f"The files of {image} cannot be taken out: {reason}.")


class OwnersLostError(OperatorError):
    """A user who can give no file away."""

    def __init__(self, *, image: Path) -> None:
        self.image = image
        super().__init__(
            f"Only root can keep the owners of the files in {image}; run as root, under fakeroot or in a container."
        )


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A range of bytes of a disk."""

    number: int
    offset: int
    size: int


def read_partitions(image: Path) -> tuple[Partition, ...]:
    """Return the partitions of a disk image by number; none when it has no partition table.

    Raises:
        UnreadableImageError: Its table is damaged, or the file cannot be read.
    """
    try:
        with image.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size or stream.seek(0, os.SEEK_END)
            reader = _TableReader(image, stream.fileno(), size)
            return reader.gpt() or reader.mbr()
    except OSError as error:
        raise UnreadableImageError(image=image, reason=str(error.strerror)) from error


@dataclass(frozen=True)
class _TableReader:
    image: Path
    descriptor: int
    size: int

    def gpt(self) -> tuple[Partition, ...]:
        for sector in _SECTOR_SIZES:
            head = os.pread(self.descriptor, 92, sector)
            if head[:8] != _GPT_MAGIC or len(head) < 92:
                continue
            header_size, stated = struct.unpack_from("<II", head, 12)
            table, count, width, _crc = struct.unpack_from("<QIII", head, 72)
            if not 92 <= header_size <= sector or not 0 < count <= _PARTITIONS_MAX or not 128 <= width <= 4096:
                raise UnreadableImageError(image=self.image, reason="its partition table is damaged")
            whole = os.pread(self.descriptor, header_size, sector)
            if zlib.crc32(whole[:16] + bytes(4) + whole[20:]) != stated:
                raise UnreadableImageError(image=self.image, reason="the checksum of its partition table is wrong")
            data = os.pread(self.descriptor, count * width, table * sector)
            found = []
            for number in range(len(data) // width):
                entry = data[number * width : (number + 1) * width]
                first, last = struct.unpack_from("<QQ", entry, 32)
                if any(entry[:16]):
                    found.append(self._checked(number + 1, first * sector, (last - first + 1) * sector))
            return tuple(found)
        return ()

    def mbr(self) -> tuple[Partition, ...]:
        block = os.pread(self.descriptor, 512, 0)
        if block[510:512] != _MBR_MARK or len(block) < 512:
            return ()
        found: list[Partition] = []
        for number in range(4):
            status, _, kind, _, first, count = _MBR_ENTRY.unpack_from(block, 446 + 16 * number)
            if status & 0x7F or not kind or not count:
                continue
            if kind in _EXTENDED:
                found += self._logical(first)
            else:
                found.append(self._checked(number + 1, first * 512, count * 512))
        return tuple(found)

    def _logical(self, base: int) -> Iterator[Partition]:
        at = base
        for number in range(_FIRST_LOGICAL, _FIRST_LOGICAL + _PARTITIONS_MAX):
            block = os.pread(self.descriptor, 512, at * 512)
            if block[510:512] != _MBR_MARK or len(block) < 512:
                raise UnreadableImageError(image=self.image, reason="its partition table is damaged")
            _, _, kind, _, first, count = _MBR_ENTRY.unpack_from(block, 446)
            if kind and count:
                yield self._checked(number, (at + first) * 512, count * 512)
            _, _, kind, _, following, _ = _MBR_ENTRY.unpack_from(block, 462)
            if kind not in _EXTENDED:
                return
            at = base + following
        raise UnreadableImageError(image=self.image, reason="its partition table is a loop")

    def _checked(self, number: int, offset: int, size: int) -> Partition:
        if offset <= 0 or size <= 0 or offset + size > self.size:
            raise UnreadableImageError(image=self.image, reason=f"partition {number} lies outside of it")
        return Partition(number=number, offset=offset, size=size)


def extract_tree(image: Path, target: Path, *, partition: int | None = None) -> None:
    """Unpack a file system or tar into the empty directory `target`, with owners, rights, times and attributes.

    `partition` is a number of the disk's partition table; without one `image` must be a file system or a tar itself.
    Device nodes, pipes and sockets may be missing.

    Raises:
        UnreadableImageError: There is no such partition, or nothing in it that can be read here.
        OwnersLostError: The user cannot give files away.
    """
    if not (image.is_file() or image.is_block_device()):
        raise UnreadableImageError(image=image, reason="it is no file")
    if os.geteuid() != 0:
        raise OwnersLostError(image=image)
    offset, size = _range(image, partition)
    with image.open("rb") as stream:
        head = os.pread(stream.fileno(), 2048, offset)
    try:
        if head[1080:1082] == b"\x53\xef":
            if struct.unpack_from("<I", head, 1024 + 96)[0] & _EXT_NEEDS_RECOVERY:
                raise UnreadableImageError(image=image, reason="its journal was not replayed; run e2fsck on it")
            _extract_ext(image, offset, target)
        elif head[:4] == b"hsqs":
            options = ["-no-progress", "-force", "-xattrs", "-offset", str(offset), "-dest", str(target)]
            run(["unsquashfs", *options, image])
        elif partition is None and (
            head.startswith(_COMPRESSED) or head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar"
        ):
            options = ["--numeric-owner", "--preserve-permissions", "--same-owner", "--xattrs", "--xattrs-include=*"]
            run(["tar", "--extract", f"--file={image.absolute()}", f"--directory={target}", *options])
        else:
            _extract_mounted(image, offset, size, target)
    except ProgramFailedError as error:
        raise UnreadableImageError(image=image, reason=str(error).rstrip(".")) from error


def _range(image: Path, partition: int | None) -> tuple[int, int]:
    if partition is None:
        return 0, image.stat().st_size
    partitions = {one.number: one for one in read_partitions(image)}
    if partition not in partitions:
        there = ", ".join(map(str, partitions)) or "none"
        raise UnreadableImageError(image=image, reason=f"it has no partition {partition} (there are: {there})")
    return partitions[partition].offset, partitions[partition].size


def _extract_ext(image: Path, offset: int, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="overhaul-image-") as scratch:
        # debugfs takes what follows a question mark for options, so the image gets a name of ours.
        link = Path(scratch) / "image"
        link.symlink_to(image.absolute())
        (Path(scratch) / "tree").symlink_to(target.absolute())
        place = f"{link}?offset={offset}"
        said = run(["debugfs", "-R", f"rdump / {scratch}/tree/", place]).stderr
        problems = [line for line in said.splitlines() if not line.startswith(b"debugfs 1.")]
        if problems:
            raise UnreadableImageError(image=image, reason=problems[0].decode(errors="replace"))
        paths = _paths(image, os.fsencode(target))
        _restore_modes(image, place, Path(scratch), os.fsencode(target), paths)
        _restore_times_of_links(place, Path(scratch), os.fsencode(target), paths)
        _restore_xattrs(place, Path(scratch), os.fsencode(target), paths)
    with _ignored(OSError):
        (target / "lost+found").rmdir()


@contextmanager
def _ignored(error: type[Exception]) -> Iterator[None]:
    try:
        yield
    except error:
        return


def _paths(image: Path, target: bytes) -> list[bytes]:
    paths = [b"/"]
    for folder, folders, names in os.walk(target):
        inside = folder[len(target) :]
        paths += [inside + b"/" + name for name in (*folders, *names)]
    for path in paths:
        if b"\n" in path:
            raise UnreadableImageError(image=image, reason=f"the name {path!r} has more than one line")
    return paths


def _restore_modes(image: Path, place: str, scratch: Path, target: bytes, paths: list[bytes]) -> None:
    """Give the tree the set-user-id and set-group-id bits that debugfs loses by giving files away last."""
    paths = [path for path in paths if not os.path.islink(target + path)]  # noqa: PTH114 - names are bytes
    answers = _debugfs(place, scratch, [b"stat " + _quoted(path) for path in paths])
    for path, lines in zip(paths, answers, strict=True):
        found = next((match for line in lines if (match := _MODE_LINE.search(line))), None)
        if found is None:
            raise UnreadableImageError(image=image, reason=f"debugfs does not tell the mode of {path!r}")
        os.chmod(target + path, int(found[1], 8))  # noqa: PTH101


def _restore_times_of_links(place: str, scratch: Path, target: bytes, paths: list[bytes]) -> None:
    """Give links the times that debugfs restores for files and directories only.

    A link that leads to more than one line keeps the time of its making: debugfs would print those lines as its own.
    """
    links = [path for path in paths if os.path.islink(target + path)]  # noqa: PTH114 - names are bytes
    links = [path for path in links if b"\n" not in os.readlink(target + path)]  # noqa: PTH115
    answers = _debugfs(place, scratch, [b"stat " + _quoted(path) for path in links])
    for path, lines in zip(links, answers, strict=True):
        found = next((match for line in lines if (match := _TIME_LINE.match(line))), None)
        if found is not None:
            low, more = int.from_bytes(bytes.fromhex(found[1].decode()), signed=True), int(found[2] or b"0", 16)
            moment_ns = (low + ((more & 3) << 32)) * 1_000_000_000 + (more >> 2)
            os.utime(target + path, ns=(moment_ns, moment_ns), follow_symlinks=False)


def _restore_xattrs(place: str, scratch: Path, target: bytes, paths: list[bytes]) -> None:
    """Give the tree the extended attributes that debugfs leaves out when it copies."""
    listing = _debugfs(place, scratch, [b"ea_list " + _quoted(path) for path in paths])
    wanted: list[tuple[bytes, bytes]] = []
    for path, lines in zip(paths, listing, strict=True):
        wanted += [(path, found[1]) for line in lines if (found := _EA_LINE.fullmatch(line))]
    files = [scratch / str(number) for number in range(len(wanted))]
    commands = [
        b"ea_get -f " + os.fsencode(file) + b" " + _quoted(path) + b" " + name
        for file, (path, name) in zip(files, wanted, strict=True)
    ]
    _debugfs(place, scratch, commands)
    for file, (path, name) in zip(files, wanted, strict=True):
        os.setxattr(target + path, name, file.read_bytes() if file.exists() else b"", follow_symlinks=False)


def _debugfs(place: str, scratch: Path, commands: list[bytes]) -> list[list[bytes]]:
    """Run commands in one process; return the lines each of them printed."""
    script = scratch / "commands"
    script.write_bytes(b"".join(command + b"\n" for command in commands))
    answers: list[list[bytes]] = []
    for line in run(["debugfs", "-f", script, place]).stdout.splitlines():
        if line.startswith(b"debugfs: "):
            answers.append([])
        elif answers:
            answers[-1].append(line)
    return answers


def _quoted(path: bytes) -> bytes:
    return b'"' + path.replace(b'"', b'""') + b'"'


def _extract_mounted(image: Path, offset: int, size: int, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="overhaul-image-") as scratch:
        mounted = Path(scratch) / "mounted"
        mounted.mkdir()
        options = f"loop,ro,nodev,nosuid,noexec,offset={offset},sizelimit={size}"
        run(["mount", "-o", options, image, mounted])
        try:
            run(["cp", "--archive", "--no-target-directory", mounted, target])
        finally:
            run(["umount", mounted])


def remove_tree(place: Path) -> None:
    """Remove a directory tree, if it is there, whatever the rights inside are."""
    if place.is_dir():
        shutil.rmtree(place)
