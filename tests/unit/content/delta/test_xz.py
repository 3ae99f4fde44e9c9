"""What the .xz format says of how a stream was packed, and names that say it."""

import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.content.delta.segments import Run
from overhaul.content.delta.xz import XzSettings, pack_xz, settings_of

_PLAIN = b"".join(b"%d " % (number * number) for number in range(60_000))

_SETTINGS = st.builds(
    XzSettings,
    preset=st.sampled_from(["0", "1", "2", "3", "3e", "4", "5", "6", "6e"]),
    dictionary_size=st.sampled_from([4096, 1 << 18, 1 << 20, 3 << 19, 1 << 26]),
    check=st.sampled_from(["none", "crc32", "crc64", "sha256"]),
    block_size=st.sampled_from([0, 100 << 10, 1 << 20, 24 << 20]),
    branch_filter=st.sampled_from(["", "x86", "powerpc", "arm", "armthumb"]),
)


def _pieces(run: Run) -> Iterator[bytes]:
    for begin in range(run.offset, run.end, 70_000):
        yield _PLAIN[begin : min(run.end, begin + 70_000)]


@given(settings=_SETTINGS)
def test_a_name_says_all_settings(settings: XzSettings) -> None:
    assert XzSettings.parse(settings.kind) == settings


@pytest.mark.parametrize(
    "kind",
    [
        "xz", "xz-6", "xz-7-1024-crc32", "xz-6-1024-crc16", "xz-6-01024-crc32", "xz-6-99999999-crc32",
        "xz-6-1024-crc32-t0", "xz-6-1024-crc32-mips", "xz-6-1024-crc32-x86-t1024", " xz-6-1024-crc32", "zstd-9",
    ],
)  # fmt: skip
def test_other_names_say_nothing(kind: str) -> None:
    assert XzSettings.parse(kind) is None


# The encoder's tables of a big dictionary are slow to set up where memory is; what counts is around the blocks.
@given(settings=_SETTINGS.filter(lambda settings: settings.dictionary_size < 1 << 20), size=st.integers(1, 300_000))
def test_every_stream_unpacks_and_says_its_settings(settings: XzSettings, size: int) -> None:
    packed = b"".join(pack_xz(settings, _pieces, Run(0, size), scratch=None))
    assert lzma.decompress(packed, lzma.FORMAT_XZ) == _PLAIN[:size]
    told = list(settings_of(packed, size))
    # Where there is one block only, nothing says how big others would be.
    if settings.block_size and size <= settings.block_size:
        told = [one for one in told if one.preset == settings.preset]
        assert [(one.dictionary_size, one.check) for one in told] == [(settings.dictionary_size, settings.check)] * len(
            told
        )
    else:
        assert settings in told


@pytest.mark.parametrize("preset", ["6", "6e"])
def test_a_small_file_takes_little_memory_whatever_its_dictionary(preset: str) -> None:
    settings = XzSettings(preset=preset, dictionary_size=64 << 20, check="crc32")
    assert settings.memory_bytes(100_000) < 4 << 20
    assert settings.memory_bytes(100 << 20) > 700 << 20


def test_a_run_inside_is_packed_alone(tmp_path: Path) -> None:
    settings = XzSettings(preset="1", dictionary_size=1 << 20, check="crc32", block_size=64 << 10)
    packed = b"".join(pack_xz(settings, _pieces, Run(1000, 200_000), scratch=tmp_path))
    assert lzma.decompress(packed) == _PLAIN[1000:201_000]
    assert list(tmp_path.iterdir()) == []
