"""What strangers send to the server, and what a publisher's configuration may say."""

import asyncio
import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request

from overhaul.errors import InputError
from overhaul.publishing.settings import UnusableSettingsError, first_settings, read_settings
from overhaul.release.versions import release_order_key
from overhaul.repository.opening import StorageAddress, open_storage
from overhaul.server.api import MAX_REPORT_BYTES, _bounded_body, _parse_report
from overhaul.server.ranges import MAX_SPANS, UnsatisfiableRangeError, parse_range
from overhaul.server.reports import DeviceReport
from overhaul.server.settings import ServerSettings
from tests.fuzz.mutations import fuzzing, judged, outside_bytes, spoilt_json, spoilt_lines

_REPORT = json.dumps(
    {
        "report_id": "0f" * 16,
        "product": "weather",
        "variant": "lite",
        "arch": "amd64",
        "channel": "stable",
        "from_version": "1.0",
        "from_build_id": "20260101",
        "to_version": "1.1",
        "to_build_id": "20260601",
        "outcome": "installed",
        "bytes_received": 123,
        "requests": 4,
        "seconds": 5.5,
        "error": None,
    }
).encode()
_SETTINGS = first_settings(
    products={"weather": ("stable", "beta"), "other": ("stable",)},
    storage=StorageAddress(url="repository", endpoint="https://s3.example.com", region="x"),
    keys="../keys",
    public_url="https://example.com/repo",
)
_NUMBERS = st.sampled_from(["0", "1", "99", "100", "101", "9" * 18, "9" * 19, "9" * 5000, "-1", " ", "", "٣"])
_SPANS = st.lists(st.tuples(_NUMBERS, _NUMBERS).map("-".join), max_size=6).map(",".join)


@fuzzing(240)
@given(
    st.one_of(
        _SPANS.map("bytes={}".format),
        st.text(alphabet="bytes=-, \t0123456789", max_size=60),
        st.integers(1, 3000).map(lambda count: "bytes=" + ",".join(["0-0"] * count)),
        st.integers(1, 9000).map(lambda count: "bytes=0-0" + " " * count + ","),
        st.text(max_size=20),
        st.none(),
    ),
    st.sampled_from([0, 1, 100, 1 << 40]),
)
def test_a_range_header_gives_spans_inside_the_file_or_the_whole(header: str | None, size: int) -> None:
    spans = judged(lambda: parse_range(header, size=size), refusal=UnsatisfiableRangeError)
    if spans is None:
        return
    assert len(spans) <= MAX_SPANS
    assert all(0 <= span.start < span.end <= size for span in spans)
    assert sum(span.size for span in spans) <= size


@fuzzing(150)
@given(spoilt_json(_REPORT))
def test_a_report_is_taken_or_refused_in_words_that_can_be_sent_back(body: bytes) -> None:
    refused: list[object] = []

    def parse() -> DeviceReport:
        try:
            return _parse_report(body[:MAX_REPORT_BYTES])
        except RequestValidationError as error:
            refused.extend(error.errors())
            raise

    report = judged(parse, refusal=RequestValidationError)
    if report is None:
        assert json.dumps(refused).encode()
        return
    assert len(report.model_dump_json()) < MAX_REPORT_BYTES
    if report.to_version is not None and report.to_build_id is not None:
        release_order_key(report.to_version, report.to_build_id)
    # No driver takes these.
    assert "\0" not in str(report.model_dump().values())
    assert report.bytes_received < 1 << 63


@fuzzing(30)
@given(
    st.lists(st.binary(max_size=3000), max_size=4),
    st.sampled_from(["0", "12", "4097", "-1", "", "x", "9" * 5000, "0" * 5000, "²"]),
)
def test_a_body_is_never_gathered_beyond_its_limit(pieces: list[bytes], declared: str) -> None:
    left = list(pieces)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": left.pop(0) if left else b"", "more_body": bool(left)}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-length", declared.encode("latin-1"))]}
    body = judged(lambda: asyncio.run(_bounded_body(Request(scope, receive))), refusal=HTTPException)
    assert body is None or len(body) <= MAX_REPORT_BYTES


@fuzzing(70)
@given(data=spoilt_lines(_SETTINGS) | outside_bytes(_SETTINGS.encode()))
def test_a_publishers_configuration_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "overhaul.toml"
    path.write_bytes(data)
    settings = judged(lambda: read_settings(path), refusal=UnusableSettingsError)
    if settings is None:
        return
    settings.lifetimes.as_lifetimes()
    judged(settings.key_plan, refusal=InputError)
    judged(lambda: open_storage(settings.storage, base=tmp_path), refusal=InputError)
    assert judged(lambda: ServerSettings.of_repository(tmp_path), refusal=()) is not None
    assert "\0" not in settings.keys + settings.storage.url
