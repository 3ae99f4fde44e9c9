"""Making groups when a release is published: which packed files are told by their unpacked bytes, and how.

A packed file is taken into a group only if a recoder of this system gives back exactly its bytes. Big files get a
group of their own; small ones share groups, so that their differences are packed together. An initial file system
consists almost wholly of files that the new image has anyway: these are moved, and only the rest is told. Its group
comes last, so that it may take what was packed again before it, such as modules.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from overhaul.content.delta.archives import members
from overhaul.content.delta.bytesource import ImageBytes
from overhaul.content.delta.compressed import (
    BOOT_MAGIC,
    BOOT_MAGIC_AT,
    PACKED_MAGICS,
    PackedPart,
    find_packed,
    find_recoder,
)
from overhaul.content.delta.groups import Move, Packing, Unpacking, Write
from overhaul.content.delta.kinds import OTHER_KIND, PACKED_KIND, kind_of
from overhaul.content.delta.pairing import Pair, part_of
from overhaul.content.delta.pieces import PIECE_SIZE, Piece, divide_file
from overhaul.content.delta.recoders import Recoder, coder_name
from overhaul.content.delta.segments import MAX_UNIT_OUTPUT, MAX_UNIT_WINDOW, Run
from overhaul.content.ext4 import Extent, ImageFile

#: Plain bytes of small files that share a group.
_SHARED_SIZE = 16 * 1024 * 1024
#: Members of an archive below this are told and not moved: a move has its price.
_MEMBER_SIZE_MIN = 1024
#: Files of one size that are compared with a member; bounds work on images made of such files.
_CANDIDATES_MAX = 8
_BLOCK_SIZE = 4096
#: Bytes around a packed part from which on they are told from the old ones.
_LITERAL_SIZE_MAX = 4096
#: Bigger files are told as they are.
_FILE_SIZE_MAX = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A changed file that can be packed again."""

    pair: Pair
    part: PackedPart
    recoder: Recoder
    #: What of the old file it can be told from.
    old_part: PackedPart | None
    #: The bytes before and behind the packed part; zeros at the end are left out.
    head: bytes
    tail: bytes

    @property
    def is_archive(self) -> bool:
        """Whether it holds files, which others may have, too."""
        return next(members(self.part.plain), None) is not None

    @property
    def plain_size(self) -> int:
        """Bytes of both unpacked parts."""
        return len(self.part.plain) + (len(self.old_part.plain) if self.old_part else 0)

    @property
    def old_head(self) -> tuple[Run, ...]:
        """Where the old image has what lies before the old file's packed part."""
        return self._old_runs(0, self.old_part.begin) if self.old_part else ()

    @property
    def old_tail(self) -> tuple[Run, ...]:
        """Where the old image has what lies behind the old file's packed part."""
        return self._old_runs(self.old_part.end, 1 << 63) if self.old_part else ()

    def _old_runs(self, begin: int, end: int) -> tuple[Run, ...]:
        found = part_of(self.pair.old.extents if self.pair.old else (), begin, end)
        runs = tuple(Run(*extent) for extent in found)
        return runs if sum(run.size for run in runs) <= MAX_UNIT_WINDOW else ()


class GroupPiece(NamedTuple):
    """A piece of a group's work area, its kind, and the bytes it must make."""

    kind: int
    piece: Piece
    made: bytes


@dataclass
class GroupPlan:
    """A group before its pieces are told."""

    files: tuple[PackedFile, ...]
    work_size: int = 0
    unpackings: list[Unpacking] = field(default_factory=list)
    #: What the unpackings make: where it lies in the work area, and its bytes.
    old_plain: list[tuple[int, bytes]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    pieces: list[GroupPiece] = field(default_factory=list)
    packings: list[Packing] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)

    def room(self, size: int) -> int:
        """Return where the next `size` bytes of the work area lie."""
        begin = self.work_size
        self.work_size = -(-(begin + size) // _BLOCK_SIZE) * _BLOCK_SIZE
        return begin


def look_into(pair: Pair, old: ImageBytes, new: ImageBytes) -> PackedFile | None:
    """Return the new file of `pair` with what it takes to pack it again, or None when that is not possible."""
    if not 0 < pair.new.stored_size <= _FILE_SIZE_MAX or pair.new.stored_size < pair.new.size:
        return None
    data = new.gather(pair.new.extents)
    part = find_packed(data)
    recoder = None if part is None else find_recoder(part, data)
    if part is None or recoder is None:
        return None
    old_part = None
    if pair.old is not None and pair.old.stored_size <= _FILE_SIZE_MAX:
        old_part = find_packed(old.gather(pair.old.extents))
    if old_part is not None and old_part.form == "xz" != part.form:
        # Agents that do not know this form yet may have the recoder of the new file.
        old_part = None
    return PackedFile(
        pair=pair,
        part=part,
        recoder=recoder,
        old_part=old_part,
        head=data[: part.begin],
        tail=data[part.end :].rstrip(b"\0"),
    )


def may_be_packed(head: bytes) -> bool:
    """Tell from the first bytes of a file whether it is worth looking into."""
    return head.startswith(PACKED_MAGICS) or head[BOOT_MAGIC_AT : BOOT_MAGIC_AT + len(BOOT_MAGIC)] == BOOT_MAGIC


def share_groups(files: Iterable[PackedFile]) -> Iterator[tuple[PackedFile, ...]]:
    """Yield the files that make one group each, by form and path; archives, which take from the others, come last."""
    ordered = sorted(files, key=lambda file: (*_kind_of_group(file), file.pair.new.path))
    for _kind, these in groupby(ordered, _kind_of_group):
        batch: list[PackedFile] = []
        for file in these:
            if batch and sum(one.plain_size for one in batch) + file.plain_size > _SHARED_SIZE:
                yield tuple(batch)
                batch = []
            batch.append(file)
        yield tuple(batch)


def _kind_of_group(file: PackedFile) -> tuple[bool, str]:
    return file.is_archive, file.part.form


class GroupPlanner:
    """Plans groups of the delta between two images."""

    def __init__(self, old: ImageBytes, new: ImageBytes, there: Iterable[ImageFile], *, block_size: int) -> None:
        self._old = old
        self._new = new
        self._block_size = block_size
        #: Files that copies, ordinary segments and earlier groups write, so that groups may take from them.
        self._by_size: defaultdict[int, list[ImageFile]] = defaultdict(list)
        self._are_there(there)

    def _are_there(self, files: Iterable[ImageFile]) -> None:
        for file in files:
            if file.size >= _MEMBER_SIZE_MIN:
                self._by_size[file.size].append(file)

    def plan(self, files: Sequence[PackedFile]) -> GroupPlan:
        """Return how `files` are made together; later groups may take from them."""
        plan = self._plan(files)
        self._are_there(file.pair.new for file in files)
        return plan

    def _plan(self, files: Sequence[PackedFile]) -> GroupPlan:
        plan = GroupPlan(files=tuple(files))
        # All old bytes lie before all new ones, so that the joined space can be named while the area still grows.
        references = [self._unpacked(plan, file) for file in files]
        literals: list[tuple[Run, bytes]] = []
        told: list[tuple[PackedFile, Extent | None, int]] = []
        for file, reference in zip(files, references, strict=True):
            told.append((file, reference, plan.room(len(file.part.plain))))
        for file, _plain, plain_at in told:
            stored = file.pair.new.stored_size
            stored_at = plan.room(stored)
            packed = Run(stored_at + file.part.begin, file.part.end - file.part.begin)
            plan.packings.append(Packing(coder_name(file.recoder.kind), Run(plain_at, len(file.part.plain)), packed))
            for run, data, around in (
                (Run(stored_at, len(file.head)), file.head, file.old_head),
                (Run(packed.end, len(file.tail)), file.tail, file.old_tail),
            ):
                if around and _LITERAL_SIZE_MAX <= run.size <= MAX_UNIT_OUTPUT:
                    plan.pieces.append(GroupPiece(PACKED_KIND, Piece(file.pair, (run,), around), data))
                else:
                    literals.append((run, data))
            position = stored_at
            for extent in file.pair.new.extents:
                plan.writes.append(Write(extent.offset, position, extent.size))
                position += extent.size
        for file, reference, plain_at in told:
            self._tell(plan, file, reference, plain_at)
        plan.pieces += _literal_pieces(files[0].pair, literals)
        plan.moves.sort()
        return plan

    def _unpacked(self, plan: GroupPlan, file: PackedFile) -> Extent | None:
        """Bring the old file's plain bytes into the work area, if they help; return where they lie."""
        old_part, pair = file.old_part, file.pair
        if old_part is None or pair.old is None or file.is_archive:
            return None
        at = plan.room(len(old_part.plain))
        packed = part_of(pair.old.extents, old_part.begin, old_part.end)
        plan.unpackings.append(
            Unpacking(old_part.form, tuple(Run(*run) for run in packed), Run(at, len(old_part.plain)))
        )
        plan.old_plain.append((at, old_part.plain))
        return Extent(at, len(old_part.plain))

    def _tell(self, plan: GroupPlan, file: PackedFile, reference: Extent | None, plain_at: int) -> None:
        plain = file.part.plain
        if reference is None or file.old_part is None:
            moves = list(self._found(plan, plain, plain_at))
            plan.moves += moves
            plan.pieces += _rest_pieces(file.pair, plain, plain_at, moves)
            return
        joined = ImageFile(
            path=b"", inode=0, size=reference.size, extents=(Extent(self._old.size + reference.offset, reference.size),)
        )
        new = ImageFile(
            path=file.pair.new.path,
            inode=file.pair.new.inode,
            size=len(plain),
            extents=(Extent(plain_at, len(plain)),),
        )
        copies, pieces = divide_file(
            Pair(old=joined, new=new, is_same=False),
            _At(self._old.size + reference.offset, file.old_part.plain),
            _At(plain_at, plain),
            _BLOCK_SIZE,
        )
        plan.moves += [Move(copy.target, copy.source, copy.size) for copy in copies]
        kind = kind_of(file.pair.new.path, plain)
        for piece in pieces:
            made = b"".join(plain[run.offset - plain_at : run.end - plain_at] for run in piece.output)
            plan.pieces.append(GroupPiece(kind, Piece(file.pair, piece.output, piece.window), made))

    def _found(self, plan: GroupPlan, plain: bytes, plain_at: int) -> Iterator[Move]:
        """Yield what of an archive the new image has in files of its own."""
        new_at = self._old.size + plan.work_size
        for member in members(plain):
            content = plain[member.offset : member.offset + member.size]
            name = member.name.rpartition(b"/")[2]
            candidates = sorted(
                self._by_size.get(member.size, ()), key=lambda file: file.path.rpartition(b"/")[2] != name
            )
            for file in candidates[:_CANDIDATES_MAX]:
                runs = _stored_runs(content, file, self._block_size)
                stored = b"".join(content[run.offset : run.end] for run in runs)
                if not stored or self._new.gather(part_of(file.extents, 0, len(stored))) != stored:
                    continue
                position = 0
                for run in runs:
                    at = plain_at + member.offset + run.offset
                    for extent in part_of(file.extents, position, position + run.size):
                        yield Move(at, new_at + extent.offset, extent.size)
                        at += extent.size
                    position += run.size
                break


def _stored_runs(content: bytes, file: ImageFile, block_size: int) -> list[Run]:
    """Return which bytes of `content` the blocks of `file` hold if it is its content; holes are blocks of zeros."""
    if file.stored_size >= len(content):
        return [Run(0, len(content))]
    runs: list[Run] = []
    for offset in range(0, len(content), block_size):
        block = content[offset : offset + block_size]
        if not block.strip(b"\0"):
            continue
        if runs and runs[-1].end == offset:
            runs[-1] = Run(runs[-1].offset, runs[-1].size + len(block))
        else:
            runs.append(Run(offset, len(block)))
    return runs


class _At:
    """Bytes that lie at some offset of a bigger space."""

    def __init__(self, offset: int, data: bytes) -> None:
        self._offset = offset
        self._data = data

    def gather(self, runs: Iterable[tuple[int, int]]) -> bytes:
        """Return the bytes of `runs`, joined."""
        return b"".join(self._data[offset - self._offset : offset - self._offset + size] for offset, size in runs)


def _rest_pieces(pair: Pair, plain: bytes, plain_at: int, moves: Sequence[Move]) -> Iterator[GroupPiece]:
    """Yield pieces without a window for what of `plain` is not moved."""
    # Work areas begin as zeros, so runs of zeros are left out.
    rest: list[tuple[Run, bytes]] = []
    position = 0
    for move in (*sorted(moves), Move(plain_at + len(plain), 0, 0)):
        begin = move.offset - plain_at
        if plain[position:begin].strip(b"\0"):
            rest.append((Run(plain_at + position, begin - position), plain[position:begin]))
        position = begin + move.size
    return _literal_pieces(pair, rest)


def _literal_pieces(pair: Pair, literals: Iterable[tuple[Run, bytes]]) -> Iterator[GroupPiece]:
    runs: list[Run] = []
    made = bytearray()
    for run, data in _cut(literals):
        if len(made) + run.size > PIECE_SIZE and runs:
            yield GroupPiece(OTHER_KIND, Piece(pair, tuple(runs), ()), bytes(made))
            runs, made = [], bytearray()
        runs.append(run)
        made += data
    if runs:
        yield GroupPiece(OTHER_KIND, Piece(pair, tuple(runs), ()), bytes(made))


def _cut(literals: Iterable[tuple[Run, bytes]]) -> Iterator[tuple[Run, bytes]]:
    for run, data in literals:
        for at in range(0, run.size, PIECE_SIZE):
            size = min(PIECE_SIZE, run.size - at)
            yield Run(run.offset + at, size), data[at : at + size]
