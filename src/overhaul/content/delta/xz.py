"""The .xz format as far as deltas pack it again: which settings made a stream, and the same bytes once more. Pure.

A stream (https://tukaani.org/xz/xz-file-format.txt) is a header, blocks, an index of their sizes and a footer. What a
block holds hangs on the settings of its LZMA2 encoder, what lies around it on the program: several-threaded xz, which
is the default from 5.6 on, cuts into blocks of one size and writes into their headers how big they are.

The header states the dictionary, but an encoder with a dictionary just big enough for a block makes the same bytes in
a fraction of the memory, so that is what is used; not with presets that look for matches in chains, whose length
hangs on collisions in a table of the dictionary's size. Only blocks come from liblzma, and with them the check sums
that Python does not have; what lies around them is written here.
"""

import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

from overhaul.content.delta.segments import Run
from overhaul.content.delta.varints import VarintReader, append_varint

XZ_MAGIC = b"\xfd7zXZ\x00"
_FOOTER_MAGIC = b"YZ"
#: Of the header and of the footer of a stream.
_EDGE_SIZE = 12
_CHECK_IDS = {
    "none": lzma.CHECK_NONE,
    "crc32": lzma.CHECK_CRC32,
    "crc64": lzma.CHECK_CRC64,
    "sha256": lzma.CHECK_SHA256,
}
_CHECK_SIZES = {"none": 0, "crc32": 4, "crc64": 8, "sha256": 32}
_LZMA2 = lzma.FILTER_LZMA2
#: Filters before LZMA2 that need no settings, as kernels are packed with.
_BRANCH_FILTERS: Mapping[str, int] = {
    "x86": lzma.FILTER_X86,
    "powerpc": lzma.FILTER_POWERPC,
    "arm": lzma.FILTER_ARM,
    "armthumb": lzma.FILTER_ARMTHUMB,
}
_HAS_PACKED_SIZE = 0x40
_HAS_PLAIN_SIZE = 0x80
#: Presets that differ by more than their dictionary, and what dictionary they take by themselves; in the order in which
#: they are worth trying where the dictionary says nothing.
_PRESETS = {"6": 8192, "6e": 8192, "5": 8192, "4": 4096, "3": 4096, "2": 2048, "1": 1024, "0": 256, "3e": 4096}
_CHAINING_PRESETS = frozenset("0123")
_KIND = re.compile(
    rf"xz-(?P<preset>[0-6]e?)-(?P<dictionary>[1-9]\d{{0,6}})-(?P<check>{'|'.join(_CHECK_IDS)})"
    rf"(?:-t(?P<block>[1-9]\d{{0,6}}))?(?:-(?P<branch>{'|'.join(_BRANCH_FILTERS)}))?"
)
_KIBIBYTE = 1024
_MEBIBYTE = 1024 * 1024
#: liblzma has no smaller dictionary.
_DICTIONARY_MIN = 4 * _KIBIBYTE
#: The end of what an encoder makes of one block, behind the block: its index and its footer.
_TAIL_SIZE_MAX = 28 + _EDGE_SIZE
_PIECE_SIZE = _MEBIBYTE

#: Yields the bytes of a run of what is to be packed, a piece at a time.
Pieces = Callable[[Run], Iterator[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class XzSettings:
    """What a stream was packed with."""

    #: As the xz program names it, without what it says of the dictionary: `6`, `6e`.
    preset: str
    #: As the stream states it.
    dictionary_size: int
    check: str
    #: Plain bytes of each block of several-threaded xz; 0 is one block whose header states no sizes.
    block_size: int = 0
    branch_filter: str = ""

    @classmethod
    def parse(cls, kind: str) -> Self | None:
        """Return what the name of a recoder says, or None when it says nothing of xz."""
        found = _KIND.fullmatch(kind)
        if found is None:
            return None
        return cls(
            preset=found["preset"],
            dictionary_size=int(found["dictionary"]) * _KIBIBYTE,
            check=found["check"],
            block_size=int(found["block"] or 0) * _KIBIBYTE,
            branch_filter=found["branch"] or "",
        )

    @property
    def kind(self) -> str:
        """The name of the recoder that packs so; sizes are in KiB."""
        parts = ["xz", self.preset, str(self.dictionary_size // _KIBIBYTE), self.check]
        if self.block_size:
            parts.append(f"t{self.block_size // _KIBIBYTE}")
        if self.branch_filter:
            parts.append(self.branch_filter)
        return "-".join(parts)

    def encoder_dictionary(self, plain_size: int) -> int:
        """Return the dictionary that an encoder of so many bytes needs to find what one of the stated size finds."""
        if self.preset in _CHAINING_PRESETS:
            return self.dictionary_size
        block = min(plain_size, self.block_size or plain_size)
        return min(self.dictionary_size, max(_DICTIONARY_MIN, 1 << max(0, block - 1).bit_length()))

    def memory_bytes(self, plain_size: int) -> int:
        """Return about what packing so many bytes takes: window, hash heads and a tree of two words a byte."""
        return 23 * self.encoder_dictionary(plain_size) // 2 + 2 * _MEBIBYTE


def settings_of(packed: bytes, plain_size: int) -> Iterator[XzSettings]:
    """Yield what the stream `packed`, which holds `plain_size` bytes, may have been packed with, likeliest first.

    Nothing is yielded for what no xz program makes by itself; that these settings make it must be proved.
    """
    check = next((name for name, number in _CHECK_IDS.items() if number == packed[len(XZ_MAGIC) + 1]), "")
    header = packed[_EDGE_SIZE : _EDGE_SIZE + 4 * (packed[_EDGE_SIZE] + 1)]
    has_sizes = header[1] & (_HAS_PACKED_SIZE | _HAS_PLAIN_SIZE)
    reader = VarintReader(header[2:])
    # The packed size comes first.
    sizes = [reader.number() for _ in range(has_sizes.bit_count())]
    first_block = sizes[-1] if sizes else plain_size
    filters = [(reader.number(), reader.take(reader.number())) for _ in range((header[1] & 3) + 1)]
    last, properties = filters.pop()
    stated = _dictionary_of(properties[0]) if last == _LZMA2 else 0
    branch = next((name for name, number in _BRANCH_FILTERS.items() if filters == [(number, b"")]), "")
    if not check or not stated or bool(filters) != bool(branch) or len(sizes) == 1 or first_block > plain_size:
        return
    block_size = 0
    if has_sizes:
        # What xz takes by itself, unless the first block says otherwise.
        block_size = max(_MEBIBYTE, 3 * stated) if first_block == plain_size else first_block
        if first_block > block_size or block_size % _KIBIBYTE:
            return
    for preset in sorted(_PRESETS, key=lambda one: (not one.startswith("6"), _PRESETS[one] * _KIBIBYTE != stated)):
        yield XzSettings(
            preset=preset, dictionary_size=stated, check=check, block_size=block_size, branch_filter=branch
        )


def pack_xz(settings: XzSettings, pieces: Pieces, run: Run, *, scratch: Path | None) -> Iterator[bytes]:
    """Yield the stream that holds `run`; the blocks of several-threaded xz lie in a file in `scratch` meanwhile.

    Raises:
        LZMAError, MemoryError, OSError: The library or the system refuses.
    """
    flags = bytes((0, _CHECK_IDS[settings.check]))
    yield XZ_MAGIC + flags + _crc32(flags)
    block_size = settings.block_size or run.size
    begins = range(run.offset, run.end, max(1, block_size))
    index = bytearray(b"\0")
    append_varint(index, len(begins))
    for begin in begins:
        part = Run(begin, min(block_size, run.end - begin))
        block = _Block(settings, pieces, part)
        if settings.block_size:
            with TemporaryFile(dir=scratch) as file:
                for piece in block:
                    file.write(piece)
                file.seek(0)
                header = _block_header(settings, (block.packed_size, part.size))
                yield header
                while piece := file.read(_PIECE_SIZE):
                    yield piece
        else:
            header = _block_header(settings, ())
            yield header
            yield from block
        append_varint(index, len(header) + block.packed_size + _CHECK_SIZES[settings.check])
        append_varint(index, part.size)
    index += bytes(-len(index) % 4)
    index += _crc32(index)
    footer = (len(index) // 4 - 1).to_bytes(4, "little") + flags
    yield bytes(index) + _crc32(footer) + footer + _FOOTER_MAGIC


class _Block:
    """What an encoder makes of one block: packed bytes, padding and check sum, without a header."""

    def __init__(self, settings: XzSettings, pieces: Pieces, part: Run) -> None:
        self._settings = settings
        self._pieces = pieces
        self._part = part
        #: Without padding and check sum; known when all was yielded.
        self.packed_size = 0

    def __iter__(self) -> Iterator[bytes]:
        # The encoder's own stream is taken apart: its header and the block's come first, its index and footer last.
        held = bytearray()
        left_out = 0
        for piece in self._stream():
            held += piece
            if not left_out and len(held) > _EDGE_SIZE:
                left_out = _EDGE_SIZE + 4 * (held[_EDGE_SIZE] + 1)
                to_drop = left_out
            if not left_out or len(held) < to_drop + _TAIL_SIZE_MAX:
                continue
            yield bytes(held[to_drop:-_TAIL_SIZE_MAX])
            del held[:-_TAIL_SIZE_MAX]
            to_drop = 0
        index_size = 4 * (int.from_bytes(held[-8:-4], "little") + 1)
        behind = len(held) - _EDGE_SIZE - index_size
        # Of its one block; the marks of an index and the count of blocks come first.
        unpadded = VarintReader(bytes(held[behind + 2 :])).number()
        self.packed_size = unpadded - (left_out - _EDGE_SIZE) - _CHECK_SIZES[self._settings.check]
        yield bytes(held[to_drop:behind])

    def _stream(self) -> Iterator[bytes]:
        settings = self._settings
        preset = int(settings.preset[0]) | (lzma.PRESET_EXTREME if settings.preset.endswith("e") else 0)
        dictionary = settings.encoder_dictionary(self._part.size)
        filters: list[dict[str, int]] = [{"id": _LZMA2, "preset": preset, "dict_size": dictionary}]
        if settings.branch_filter:
            filters.insert(0, {"id": _BRANCH_FILTERS[settings.branch_filter]})
        encoder = lzma.LZMACompressor(lzma.FORMAT_XZ, _CHECK_IDS[settings.check], filters=filters)
        for piece in self._pieces(self._part):
            yield encoder.compress(piece)
        yield encoder.flush()


def _block_header(settings: XzSettings, sizes: tuple[int, ...]) -> bytes:
    # Several-threaded xz leaves room before it knows the sizes: for those that a block has at most.
    size = len(_header_fields(settings, (_bound(settings.block_size), settings.block_size) if sizes else ()))
    fields = _header_fields(settings, sizes).ljust(-(-(1 + size) // 4) * 4 - 1, b"\0")
    header = bytes(((1 + len(fields)) // 4,)) + fields
    return header + _crc32(header)


def _bound(block_size: int) -> int:
    """Return what lzma_block_buffer_bound() says a block of so many bytes takes at most, with its header."""
    chunks = -(-block_size // 0x10000)
    return 92 + -(-(block_size + 3 * chunks + 1) // 4) * 4


def _header_fields(settings: XzSettings, sizes: tuple[int, ...]) -> bytes:
    filters = [_BRANCH_FILTERS[settings.branch_filter]] if settings.branch_filter else []
    fields = bytearray((len(filters) | (_HAS_PACKED_SIZE | _HAS_PLAIN_SIZE if sizes else 0),))
    for size in sizes:
        append_varint(fields, size)
    for branch in filters:
        fields += bytes((branch, 0))
    fields += bytes((_LZMA2, 1, _dictionary_byte(settings.dictionary_size)))
    return bytes(fields)


def _dictionary_of(code: int) -> int:
    """Return the dictionary that a byte of a block header states; 0 for what none states that is worth looking at."""
    return (2 | code & 1) << code // 2 + 11 if code < 40 else 0


def _dictionary_byte(size: int) -> int:
    return next((code for code in range(40) if _dictionary_of(code) >= size), 40)


def _crc32(data: bytes | bytearray) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")
