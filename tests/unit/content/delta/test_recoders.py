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
from overhaul.content.delta.recoders import RECODERS, RecodingFailedError, coder_name, proved, recoder_of
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


def test_bytes_of_unknown_settings_find_no_recoder(tmp_path: Path) -> None:
    data = _packed_by(["zstd", "-q", "-9", "--long=20", "-c"], tmp_path, _PLAIN)
    part = find_packed(data)
    assert part is not None
    assert find_recoder(part, data) is None


@pytest.mark.parametrize("kind", RECODERS)
def test_a_name_holds_the_digest_of_what_this_system_makes(kind: str) -> None:
    name = coder_name(kind)
    recoder = recoder_of(name)
    assert recoder is not None
    assert recoder.kind == kind
    assert proved([name]) == {name}
    digit = "0" if name[-1] != "0" else "1"
    assert recoder_of(name[:-1] + digit) is None


@pytest.mark.parametrize("name", ["", "gzip-9", "unknown-1.00000000", "gzip-9.", ".", "lz4-9.zz"])
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
