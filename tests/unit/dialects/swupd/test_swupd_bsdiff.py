"""swupd's delta container: both headers, all encodings, and nothing believed that was not checked.

No tool of the original is packaged, so the reader is judged by deltas put together here, field by field, from the
description of the format, and by the properties that any reader must have.
"""

import bz2
import gzip
import lzma
import random
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.mutations import fuzzing, judged, mutated

from overhaul.content.delta.matching import find_covers
from overhaul.dialects.swupd.bsdiff import (
    FULL_MAGIC,
    FullFileWantedError,
    MalformedDeltaFileError,
    apply_delta,
    make_delta,
    read_delta_header,
)

OLD = b"0123456789" * 10
NEW = b"123456789A" + b"new bytes" + b"56789"
#: The first adds ten bytes of `OLD` from its second byte with one correction, then nine new ones; then five at 25.
TRIPLES = struct.pack("<9q", 0, 0, 1, 10, 9, 14, 5, 0, 0)
DIFF = bytes(9) + bytes([ord("A") - ord("0")]) + bytes(5)
EXTRA = b"new bytes"

PACKERS: list[Callable[[bytes], bytes]] = [
    lambda data: data,
    bz2.compress,
    gzip.compress,
    lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
]


def put_together(
    control: bytes, diff: bytes, extra: bytes, bits: int, *, wide: bool, old: int = len(OLD), new: int = len(NEW)
) -> bytes:
    lengths = (len(control), len(diff), len(extra))
    if wide:
        head = b"BSDIFF4U" + struct.pack("<BIQQQQQIIIH", 67, *lengths, old, new, 0, 0o100644, 1, 2, bits)
    else:
        head = b"BSDIFF4V" + struct.pack("<BBHHHHIIIH", 32, *lengths, old, new, 0o100644, 1, 2, bits)
    return head + control + diff + extra


PLAIN = 1 | 1 << 5 | 1 << 10


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("encoding", range(4))
def test_every_encoding_of_both_headers_is_read(wide: bool, encoding: int) -> None:
    blocks = [PACKERS[encoding](block) for block in (TRIPLES, DIFF, EXTRA)]
    bits = sum(1 << encoding + 5 * block for block in range(3))
    delta = put_together(blocks[0], blocks[1], blocks[2], bits, wide=wide)
    assert apply_delta(delta, OLD) == NEW
    header = read_delta_header(delta)
    assert (header.mode, header.uid, header.gid, header.new_size) == (0o100644, 1, 2, len(NEW))


@pytest.mark.parametrize("wide", [False, True])
def test_blocks_of_zeros_are_one_number(wide: bool) -> None:
    delta = put_together(
        struct.pack("<3q", 100, 7, 0), struct.pack("<Q", 100), struct.pack("<Q", 7), 1 | 1 << 9 | 1 << 14, wide=wide,
        new=107,
    )  # fmt: skip
    assert apply_delta(delta, OLD) == OLD + bytes(7)


def test_the_marker_for_whole_files_is_told_from_damage() -> None:
    with pytest.raises(FullFileWantedError):
        apply_delta(FULL_MAGIC, OLD)


@pytest.mark.parametrize(
    "delta",
    [
        b"",
        b"DIR_V20U",
        put_together(TRIPLES, DIFF, EXTRA, PLAIN | 2, wide=True),
        put_together(TRIPLES, DIFF, EXTRA, PLAIN & ~1, wide=True),
        put_together(TRIPLES, DIFF, EXTRA, PLAIN | 0x8000, wide=False),
        put_together(TRIPLES, DIFF, EXTRA, 1 << 4 | 1 << 5 | 1 << 10, wide=True),
        put_together(TRIPLES, DIFF, EXTRA, PLAIN, wide=True, old=99),
        put_together(TRIPLES, DIFF, EXTRA, PLAIN, wide=True, new=len(NEW) - 1),
        put_together(TRIPLES, DIFF, EXTRA, PLAIN, wide=True, new=len(NEW) + 1),
        put_together(TRIPLES, DIFF, EXTRA, PLAIN, wide=True, new=(512 << 20) + 1),
        put_together(TRIPLES, DIFF, EXTRA, PLAIN, wide=True) + b"x",
        put_together(TRIPLES[:-1], DIFF, EXTRA, PLAIN, wide=True),
        put_together(struct.pack("<3q", -1, 0, 0) + TRIPLES, DIFF, EXTRA, PLAIN, wide=True),
        put_together(struct.pack("<3q", 0, 0, -1) + TRIPLES, DIFF, EXTRA, PLAIN, wide=True),
        put_together(struct.pack("<3q", 0, 0, 101), DIFF, EXTRA, PLAIN, wide=True),
        put_together(struct.pack("<3q", 0, 0, (1 << 63) - 1) * 2, b"", b"", PLAIN, wide=True, new=0),
        put_together(struct.pack("<3q", 0, (1 << 63) - 1, 0), b"", b"", PLAIN, wide=True, new=0),
        put_together(b"", struct.pack("<Q", 1 << 62), b"", 1 | 1 << 9 | 1 << 10, wide=True),
        put_together(b"", zlib.compress(bytes(1 << 20)), b"", 1 | 1 << 7 | 1 << 10, wide=True),
        put_together(b"", bz2.compress(b"x")[:-1], b"", 1 | 1 << 6 | 1 << 10, wide=True),
    ],
)  # fmt: skip
def test_what_is_damaged_or_hostile_is_refused(delta: bytes) -> None:
    with pytest.raises(MalformedDeltaFileError):
        apply_delta(delta, OLD)


def made(old: bytes, new: bytes) -> bytes | None:
    return make_delta(old, new, mode=0o100755, uid=3, gid=4, find_covers=find_covers)


@given(st.binary(min_size=300, max_size=600), st.integers(0, 300), st.binary(max_size=60), st.integers(1, 40))
def test_what_is_made_is_applied(old: bytes, place: int, inserted: bytes, times: int) -> None:
    old *= times
    new = old[:place] + inserted + old[place + 7 :]
    delta = made(old, new)
    if delta is not None:
        assert apply_delta(delta, old) == new
        assert len(delta) < len(new)


def test_small_files_get_the_narrow_header_and_large_ones_the_wide() -> None:
    numbers = random.Random(7)
    for size, magic in ((30_000, b"BSDIFF4V"), (200_000, b"BSDIFF4U")):
        old = numbers.randbytes(size)
        new = old[:5000] + b"changed" + old[5000:9000] + b"!" + old[9001:]
        delta = made(old, new)
        assert delta is not None
        assert delta.startswith(magic)
        assert len(delta) < 300
        assert apply_delta(delta, old) == new
        header = read_delta_header(delta)
        assert (header.mode, header.uid, header.gid) == (0o100755, 3, 4)


def test_no_delta_is_made_where_the_whole_file_is_cheaper() -> None:
    numbers = random.Random(7)
    assert made(b"", bytes(1000)) is None
    assert made(bytes(1000), bytes(199)) is None
    assert made(numbers.randbytes(5000), numbers.randbytes(5000)) is None


_SAMPLES = [put_together(TRIPLES, DIFF, EXTRA, PLAIN, wide=wide) for wide in (False, True)] + [
    put_together(gzip.compress(TRIPLES), gzip.compress(DIFF), gzip.compress(EXTRA), PLAIN << 2, wide=True)
]


@fuzzing(400)
@given(mutated(*_SAMPLES, places=range(67)))
def test_spoilt_deltas_are_applied_or_refused(delta: bytes) -> None:
    judged(lambda: apply_delta(delta, OLD), refusal=MalformedDeltaFileError)


def test_every_truncation_is_refused() -> None:
    for sample in _SAMPLES:
        for end in range(len(sample)):
            with pytest.raises(MalformedDeltaFileError):
                apply_delta(sample[:end], OLD)
