"""Kits come from anybody's hands: whatever their bytes, a reader gives files or refuses in a sentence."""

import io
import tarfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from overhaul.transfer.fetcher import Request
from overhaul.transfer.kit import KIT_URL, FileKit, KitFetcher, KitUnusableError, open_kit, read_manifest
from overhaul.transfer.receipt import ForgedReceiptError, decode_receipt, encode_receipt, report_in
from tests.fuzz.mutations import fuzzing, judged, mutated, outside_bytes, spoilt_json

_MANIFEST = (
    b'{"format":1,"kit_id":"ab","receipt_key":"cd","product":"p","channel":"c","releases":[{"variant":"v","arch":"a",'
    b'"version":"1","build_id":"2"}],"sources":[],"made_at":1,"usable_until":2}'
)
_KEY = "0f" * 32
_RECEIPT = encode_receipt(b'{"report_id":"00"}', kit_id="ab", receipt_key=_KEY)


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in {"targets/" + "x" * 150: b"abc", "kit.json": _MANIFEST, "receipts/a.json": _RECEIPT}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()[: 20 * 512]


def _all_read(path: Path) -> int:
    kit = open_kit(path)
    fetcher = KitFetcher(kit)
    total = 0
    for name in kit.names(""):
        with fetcher.fetch(Request(url=f"{KIT_URL}/{name}")) as response:
            total += sum(map(len, response.body)) if response.status == 200 else 0
    read_manifest(kit)
    return total


@fuzzing(80)
@given(data=outside_bytes(_tar()))
def test_a_file_kit_of_any_bytes_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.kit"
    path.write_bytes(data)
    total = judged(lambda: _all_read(path), refusal=KitUnusableError)
    assert total is None or total <= len(data)


@fuzzing(60)
@given(data=spoilt_json(_MANIFEST) | mutated(_MANIFEST))
def test_a_manifest_of_any_bytes_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "kit.json").write_bytes(data)
    judged(lambda: read_manifest(open_kit(tmp_path)), refusal=KitUnusableError)


@fuzzing(100)
@given(data=spoilt_json(_RECEIPT) | outside_bytes(_RECEIPT))
def test_only_the_report_that_was_written_comes_out_of_a_receipt(data: bytes) -> None:
    found = judged(
        lambda: report_in(decode_receipt(data, name="a"), receipt_key=_KEY, name="a"), refusal=ForgedReceiptError
    )
    assert found in {None, b'{"report_id":"00"}'}


@fuzzing(60)
@given(start=st.integers(0, 200), length=st.none() | st.integers(1, 300))
def test_a_kit_answers_ranges_as_a_server_does(tmp_path: Path, start: int, length: int | None) -> None:
    (tmp_path / "a.kit").write_bytes(_tar())
    fetcher = KitFetcher(FileKit(tmp_path / "a.kit"))
    end = None if length is None else start + length
    with fetcher.fetch(Request(url=f"{KIT_URL}/kit.json", start=start, end=end)) as response:
        body = b"".join(response.body)
        whole = start == 0 and end is None
        assert response.status == (200 if whole else 416 if start >= len(_MANIFEST) else 206)
        assert body == _MANIFEST[start:end]
