"""Unpacking bytes that nobody vouches for: right, wrong, short and endless ones."""

import gzip
import itertools
import lzma
import random
import zlib
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.content.delta.images import code_like

from overhaul.content.delta.compressed import PlainBytes
from overhaul.content.delta.inodes import INODES_FORM
from overhaul.content.delta.recoders import RecodingFailedError, recoder_called
from overhaul.content.delta.segments import Run
from overhaul.content.delta.unpacking import FORMS, WrongPackedBytesError, unpack

#: Those of which a size or a sum says whether they are whole.
_CHECKED_FORMS = [form for form in FORMS if form != INODES_FORM]
_PLAIN = code_like(random.Random(6), 300_000)
_KIND_OF_FORM = {"gzip": "zlib-6-8", "lz4": "lz4-9", "zstd": "zstd-3", "xz": "xz-6-1024-crc32"}


@cache
def _packed(form: str, plain: bytes) -> bytes:
    recoder = recoder_called(_KIND_OF_FORM[form])
    assert recoder is not None
    return b"".join(recoder.pack(PlainBytes(plain), Run(0, len(plain)), scratch=None))


@pytest.mark.parametrize("form", _CHECKED_FORMS)
@given(cuts=st.lists(st.integers(0, 300_000), max_size=6))
def test_pieces_of_any_size_unpack_to_the_same_bytes(form: str, cuts: list[int]) -> None:
    packed = _packed(form, _PLAIN)
    places = sorted({0, len(packed), *(cut % (len(packed) + 1) for cut in cuts)})
    pieces = [packed[begin:end] for begin, end in itertools.pairwise(places)]
    assert b"".join(unpack(form, pieces, len(_PLAIN))) == _PLAIN


@pytest.mark.parametrize("form", _CHECKED_FORMS)
def test_a_stream_cut_anywhere_is_refused(form: str) -> None:
    packed = _packed(form, _PLAIN[:3000])
    for size in range(len(packed)):
        with pytest.raises(WrongPackedBytesError):
            b"".join(unpack(form, [packed[:size]], 3000))


@pytest.mark.parametrize("form", _CHECKED_FORMS)
def test_bytes_behind_the_stream_are_refused(form: str) -> None:
    with pytest.raises(WrongPackedBytesError):
        b"".join(unpack(form, [_packed(form, _PLAIN), b"more"], len(_PLAIN)))


@pytest.mark.parametrize("form", _CHECKED_FORMS)
@pytest.mark.parametrize("stated", [0, 1, len(_PLAIN) - 1, len(_PLAIN) + 1])
def test_another_size_than_stated_is_refused(form: str, stated: int) -> None:
    with pytest.raises(WrongPackedBytesError):
        b"".join(unpack(form, [_packed(form, _PLAIN)], stated))


@pytest.mark.parametrize("form", ["gzip", "zstd", "xz"])
def test_a_flipped_bit_never_gives_other_bytes(form: str) -> None:
    packed = bytearray(_packed(form, _PLAIN[:2000]))
    refused = 0
    for place in range(len(packed)):
        packed[place] ^= 0x10
        try:
            # Some bits mean nothing, such as those of a window size that is big enough either way.
            assert b"".join(unpack(form, [bytes(packed)], 2000)) == _PLAIN[:2000]
        except WrongPackedBytesError:
            refused += 1
        packed[place] ^= 0x10
    assert refused > 0.95 * len(packed)


def test_a_form_of_a_later_version_is_refused() -> None:
    with pytest.raises(RecodingFailedError, match="brotli"):
        b"".join(unpack("brotli", [b"packed"], 9))


def test_a_stream_of_xz_that_states_a_huge_dictionary_is_refused() -> None:
    packed = bytearray(lzma.compress(b"text", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]))
    with pytest.raises(WrongPackedBytesError):
        b"".join(unpack("xz", [bytes(packed)], 4))


def test_a_bomb_is_given_up_when_it_exceeds_its_size() -> None:
    packed = gzip.compress(bytes(64 << 20), mtime=0)[10:]
    seen: list[int] = []
    with pytest.raises(WrongPackedBytesError):
        seen.extend(map(len, unpack("gzip", [packed], 1_000_000)))
    assert sum(seen) <= 1_000_000


def test_a_trailer_of_other_bytes_is_refused() -> None:
    packed = _packed("gzip", b"some text")
    wrong = packed[:-8] + zlib.crc32(b"other text").to_bytes(4, "little") + packed[-4:]
    with pytest.raises(WrongPackedBytesError):
        b"".join(unpack("gzip", [wrong], 9))
