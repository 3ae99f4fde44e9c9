"""Packs: what a device needs for one step of one bundle, in one archive of several compressed blocks.

A pack is one tar whose compressed bytes are streams behind one another, cut between members. All cores make
blocks at once, memory holds a few of them, and the zero pack of a version takes over the blocks of its predecessor
of which nearly everything is still wanted: what is left of removed objects in them is never used, and stays below
`_WASTE_MAX` of a block. Which block holds what stands beside the zero pack in `pack-<bundle>-from-0.tar.blocks`.
"""

import hashlib
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from overhaul.dialects.swupd.fullfiles import FullfileStore
from overhaul.dialects.swupd.manifest import Entry, Manifest
from overhaul.dialects.swupd.names import pack_path
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.packing import Compression, compress, split_streams
from overhaul.dialects.swupd.tars import END, Member, encode_header, padding, read_tar

#: Uncompressed bytes of a block; a member larger than this is a block of its own.
_BLOCK_BYTES = 4 << 20
#: Blocks for each worker that may be waiting, or done and not yet written.
_BLOCKS_AHEAD = 2
_WASTE_MAX = 0.15
_MAX_BLOCKS_FILE = 256 << 20
BLOCKS_SUFFIX = ".blocks"

_PRIVATE = stat.S_IFDIR | 0o700
_DIRECTORIES = b"".join(encode_header(Member(name=name, mode=_PRIVATE, uid=0, gid=0)) for name in ("staged", "delta"))


class Block(msgspec.Struct, frozen=True):
    """One compressed stream of a zero pack."""

    size: int
    sha256: str
    #: Hash of each object in it, and the uncompressed bytes of its member.
    objects: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class PackMember:
    """One member of a pack that is still to be read."""

    #: Its hash, or the name of a delta.
    key: str
    #: Bytes it roughly has.
    size: int
    #: Returns header, content and padding.
    read: Callable[[], bytes]


@dataclass(frozen=True)
class PackWriter:
    """Writes packs into the directory of the version that is made."""

    web: Path
    making: Path
    store: FullfileStore
    options: BuildOptions
    pool: ThreadPoolExecutor

    def staged(self, entry: Entry) -> PackMember:
        """Return the member that is an object itself."""
        path = entry.name if self.options.era.hashes_directory_paths and entry.kind == "D" else None
        version, digest = entry.version, entry.hash

        def read() -> bytes:
            return self.store.read(version, digest, path=path).as_member(f"staged/{digest}")

        # Compressed sizes are known without reading; four times that is near enough to fill blocks evenly.
        return PackMember(digest, 4 * self.store.size(version, digest), read)

    def delta(self, name: str, place: Path) -> PackMember:
        """Return the member that is the delta at `place`."""

        def read() -> bytes:
            data = place.read_bytes()
            member = Member(name=name, mode=stat.S_IFREG | 0o644, uid=0, gid=0, size=len(data))
            return encode_header(member) + data + padding(len(data))

        return PackMember(name, place.stat().st_size, read)

    def write(self, bundle: str, version: int, *, old: int, members: Sequence[PackMember]) -> Path:
        """Write the pack that leads a bundle from its version `old` to `version`, which is being made."""
        place = self._place(version, bundle, old)
        with place.open("wb") as stream:
            stream.write(_compress(_DIRECTORIES, self.options))
            for data, _block in self._blocks(members):
                stream.write(data)
            stream.write(_compress(END, self.options))
        return place

    def write_zero(self, bundle: str, manifest: Manifest, *, before: int) -> Path:
        """Write a bundle's zero pack; what its pack of version `before` (0: none) has and is wanted is taken over."""
        wanted = {entry.hash: entry for entry in manifest.entries if entry.is_present}
        place = self._place(manifest.version, bundle, 0)
        blocks: list[Block] = []
        with place.open("wb") as stream:
            stream.write(_compress(_DIRECTORIES, self.options))
            for data, block in self._old_blocks(bundle, before, wanted):
                stream.write(data)
                blocks.append(block)
            there = {digest for block in blocks for digest, _size in block.objects}
            rest = [self.staged(entry) for digest, entry in wanted.items() if digest not in there]
            for data, block in self._blocks(rest):
                stream.write(data)
                blocks.append(block)
            stream.write(_compress(END, self.options))
        place.with_name(place.name + BLOCKS_SUFFIX).write_bytes(msgspec.json.encode(blocks))
        return place

    def _place(self, version: int, bundle: str, old: int) -> Path:
        return self.making / pack_path(version, bundle, old=old).partition("/")[2]

    def _blocks(self, members: Sequence[PackMember]) -> Iterator[tuple[bytes, Block]]:
        """Yield the compressed blocks of members in their order, made on all cores a few ahead."""
        waiting: deque[Future[tuple[bytes, Block]]] = deque()
        try:
            for group in _grouped(members):
                waiting.append(self.pool.submit(self._block, group))
                if len(waiting) > _BLOCKS_AHEAD * self.options.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _block(self, members: Sequence[PackMember]) -> tuple[bytes, Block]:
        pieces = [member.read() for member in members]
        data = _compress(b"".join(pieces), self.options)
        objects = tuple((member.key, len(piece)) for member, piece in zip(members, pieces, strict=True))
        return data, Block(len(data), hashlib.sha256(data).hexdigest(), objects)

    def _old_blocks(self, bundle: str, before: int, wanted: Mapping[str, Entry]) -> Iterator[tuple[bytes, Block]]:
        """Yield the blocks of an older zero pack that hold little else than what is wanted, after a look at each."""
        pack = self.web / pack_path(before, bundle, old=0)
        if not before or not pack.is_file():
            return
        seen: set[str] = set()
        with pack.open("rb") as stream:
            stream.seek(len(_compress(_DIRECTORIES, self.options)))
            for block in read_blocks(pack):
                data = stream.read(block.size)
                total = sum(size for _digest, size in block.objects)
                of_use = {digest: size for digest, size in block.objects if digest in wanted and digest not in seen}
                if sum(of_use.values()) < (1 - _WASTE_MAX) * total:
                    continue
                if hashlib.sha256(data).hexdigest() != block.sha256:
                    # Made with other options, or damaged: then everything is packed anew.
                    continue
                seen |= of_use.keys()
                yield data, block


def read_blocks(pack: Path) -> tuple[Block, ...]:
    """Return what stands beside a zero pack about its blocks; nothing when that is not there or not readable."""
    sidecar = pack.with_name(pack.name + BLOCKS_SUFFIX)
    if not sidecar.is_file() or sidecar.stat().st_size > _MAX_BLOCKS_FILE:
        return ()
    try:
        return msgspec.json.decode(sidecar.read_bytes(), type=tuple[Block, ...])
    except msgspec.MsgspecError:
        return ()


def read_pieces(pack: Path, options: BuildOptions) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes of a zero pack made with `options` in pieces, each with the size that it unpacks to.

    A piece is one or several whole streams, or a reader finds that it is not.
    """
    head = len(_compress(_DIRECTORIES, options))
    with pack.open("rb") as stream:
        yield len(_DIRECTORIES), stream.read(head)
        for block in read_blocks(pack):
            yield sum(size for _digest, size in block.objects), stream.read(block.size)
        yield len(END), stream.read()


def unpack_piece(piece: BinaryIO, *, name: str) -> Iterator[tuple[Member, memoryview]]:
    """Yield the members of a pack or of a piece of it, with one stream of it in memory.

    Raises:
        MalformedCompressionError: It cannot be unpacked.
        MalformedTarError: It holds what no pack may.
    """
    for data in split_streams(piece, name=name):
        # Every stream is whole members; only the last has the end, and without one nothing ends.
        archive = data if data.endswith(END) and not any(data) else data + END
        yield from read_tar(archive, name=name)


def _compress(data: bytes, options: BuildOptions) -> bytes:
    how: Compression = "xz" if options.compression == "smallest" else options.compression
    return compress(data, how=how, level=options.pack_level)


def _grouped(members: Sequence[PackMember]) -> Iterator[list[PackMember]]:
    group: list[PackMember] = []
    size = 0
    for member in members:
        if group and size + member.size > _BLOCK_BYTES:
            yield group
            group, size = [], 0
        group.append(member)
        size += member.size
    if group:
        yield group
