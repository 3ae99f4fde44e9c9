"""Packing bytes again as the real programs packed them, and proving it before it is offered."""

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.tools import need
from tests.unit.content.delta.images import code_like

from overhaul.content.delta import recoders
from overhaul.content.delta.compressed import PlainBytes, find_packed, find_recoder
from overhaul.content.delta.recoders import (
    RECODERS,
    RecodingFailedError,
    coder_name,
    proved,
    recoder_called,
    recoder_of,
)
from overhaul.content.delta.segments import Run

_PLAIN = code_like(random.Random(5), 2_300_000)


def _packed_by(program: Sequence[str], tmp_path: Path, plain: bytes) -> bytes:
    source = tmp_path / "plain"
    source.write_bytes(plain)
    need(program[0])
    done = subprocess.run([*program, str(source)], check=True, capture_output=True)
    return done.stdout


@pytest.mark.parametrize(
    ("program", "format_name"),
    [
        (["gzip", "-9nc"], ("gzip", "zlib")),
        (["gzip", "-6nc"], ("gzip", "zlib")),
        (["gzip", "-9c"], ("gzip", "zlib")),
        (["zstd", "-q", "-9", "-c"], ("zstd",)),
        (["zstd", "-q", "-19", "-c"], ("zstd",)),
        (["zstd", "-q", "-3", "-c"], ("zstd",)),
        (["lz4", "-q", "-l", "-9", "-c"], ("lz4",)),
        # As kernels install their modules; as firmware and documents come.
        (["xz", "--check=crc32", "--lzma2=dict=1MiB", "-c"], ("xz",)),
        (["xz", "--check=crc32", "-c"], ("xz",)),
        (["xz", "-9e", "-c"], ("xz",)),
        (["xz", "-2", "--check=sha256", "-c"], ("xz",)),
        # As several-threaded xz does, which later versions are by default.
        (["xz", "-T2", "--check=crc32", "--lzma2=dict=1MiB", "-c"], ("xz",)),
        (["xz", "-T2", "-0", "--check=none", "-c"], ("xz",)),
        # As kernels pack themselves.
        (["xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB", "-c"], ("xz",)),
    ],
)
@pytest.mark.parametrize("size", [1, 40_000, 2_300_000])
def test_what_the_real_program_packed_is_made_again_byte_by_byte(
    tmp_path: Path, program: list[str], format_name: tuple[str, ...], size: int
) -> None:
    data = _packed_by(program, tmp_path, _PLAIN[:size])
    part = find_packed(data)
    assert part is not None
    assert part.plain == _PLAIN[:size]
    recoder = find_recoder(part, data)
    assert recoder is not None
    assert recoder.format in format_name
    assert b"".join(recoder.pack(PlainBytes(part.plain), Run(0, size), scratch=tmp_path)) == data[part.begin : part.end]


@pytest.mark.parametrize("options", [["-T0", "-15"], ["-T2", "-19"], ["-9"], []], ids=" ".join)
@pytest.mark.parametrize("size", [1, 300_000])
def test_what_zstd_packed_from_a_pipe_is_made_again(tmp_path: Path, options: list[str], size: int) -> None:
    plain = _PLAIN[:size]
    command = [need("zstd"), "-q", "-c", *options]
    data = subprocess.run(command, input=plain, check=True, capture_output=True).stdout
    part = find_packed(data)
    assert part is not None
    recoder = find_recoder(part, data)
    assert recoder is not None
    assert recoder.kind.endswith("-piped")
    assert b"".join(recoder.pack(PlainBytes(plain), Run(0, size), scratch=tmp_path)) == data


def test_bytes_of_unknown_settings_find_no_recoder(tmp_path: Path) -> None:
    data = _packed_by(["zstd", "-q", "-9", "--long=20", "-c"], tmp_path, _PLAIN)
    part = find_packed(data)
    assert part is not None
    assert find_recoder(part, data) is None


@pytest.mark.parametrize(
    "program",
    [
        ["xz", "--lzma2=nice=200", "-c"],
        ["xz", "--lzma2=lc=4", "-c"],
        ["xz", "--delta=dist=4", "--lzma2=preset=6", "-c"],
        ["xz", "-T1", "--block-size=500KiB", "-c"],
    ],
)
def test_a_stream_of_xz_with_settings_nobody_uses_finds_no_recoder(tmp_path: Path, program: list[str]) -> None:
    data = _packed_by(program, tmp_path, _PLAIN[:1_200_000])
    part = find_packed(data)
    assert part is not None
    assert find_recoder(part, data) is None


def test_what_takes_the_memory_of_a_big_dictionary_is_left_as_it_is(tmp_path: Path) -> None:
    plain = _PLAIN * 2
    small, big = (
        _packed_by(["xz", "-0", f"--lzma2=preset=0,dict={mebibytes}MiB", "-c"], tmp_path, plain) for mebibytes in (1, 8)
    )
    parts = [find_packed(small), find_packed(big)]
    assert [part and len(part.plain) for part in parts] == [len(plain)] * 2
    found = [part and find_recoder(part, data) for part, data in zip(parts, (small, big), strict=True)]
    assert [recoder and recoder.kind for recoder in found] == ["xz-0-1024-crc64", None]
    recoder = recoder_called("xz-6-65536-crc64")
    assert recoder is not None
    with pytest.raises(RecodingFailedError, match="too much memory"):
        list(recoder.pack(PlainBytes(plain), Run(0, len(plain)), scratch=tmp_path))


@pytest.mark.parametrize("kind", [*RECODERS, "xz-6-1024-crc32", "xz-6-8192-crc32-t24576", "xz-6e-32768-crc32-x86"])
def test_a_name_holds_the_digest_of_what_this_system_makes(kind: str) -> None:
    name = coder_name(kind)
    recoder = recoder_of(name)
    assert recoder is not None
    assert recoder.kind == kind
    assert proved([name]) == {name}
    digit = "0" if name[-1] != "0" else "1"
    assert recoder_of(name[:-1] + digit) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gzip-9",
        "unknown-1.00000000",
        "gzip-9.",
        ".",
        "lz4-9.zz",
        "xz-6.",
        "xz-6-1024-crc32.0",
        "xz-6-0-crc32.00000000",
    ],
)
def test_names_nobody_proved_are_not_offered(name: str) -> None:
    assert proved([name]) == frozenset()


def test_a_library_that_is_not_there_is_simply_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    name = coder_name("lz4-9")

    def gone(_name: str) -> None:
        raise OSError("cannot open shared object file")

    for function in (recoders.lz4_library, recoders.coder_name):
        function.cache_clear()
    try:
        monkeypatch.setattr("overhaul.content.delta.recoders.ctypes.CDLL", gone)
        assert recoder_of(name) is None
        with pytest.raises(RecodingFailedError, match=r"liblz4\.so\.1"):
            coder_name("lz4-9")
    finally:
        monkeypatch.undo()
        for function in (recoders.lz4_library, recoders.coder_name):
            function.cache_clear()


def test_a_gzip_that_is_not_there_is_simply_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    name = coder_name("gzip-9")
    coder_name.cache_clear()
    monkeypatch.setattr("overhaul.host.processes.shutil.which", lambda *_arguments, **_options: None)
    assert recoder_of(name) is None
    monkeypatch.undo()
    coder_name.cache_clear()
