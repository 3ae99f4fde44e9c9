"""What publishers and servers read back from storage that others can write to."""

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given

from overhaul.errors import OperatorError, TrustError
from overhaul.release.record import FileRef, ReleaseId
from overhaul.repository.journal import Journal, JournalEntry
from overhaul.repository.layout import journal_key
from overhaul.repository.lock import Holder, _parse
from overhaul.repository.memory import MemoryStorage
from overhaul.server.catalogue import _decode
from overhaul.trust.keyring import KEYRING_FILE, Keyring
from overhaul.trust.keys import KeyCount, KeyPlan
from tests.fuzz.mutations import fuzzing, judged, spoilt_json

_RELEASE = ReleaseId(product="weather", variant="lite", arch="amd64", version="1.0", build_id="1")
_ENTRY = JournalEntry(
    release=_RELEASE, channel="stable", started_at=1, index=FileRef(path="a/b", size=1, sha256="ab" * 32)
)
_HOLDER = msgspec.json.encode(Holder(host="h", pid=1, purpose="publish", since=1.5, token="t", ends_at=2.5))
_METADATA = b'{"signed":{"version":1,"expires":"2027-06-01T12:00:00Z","meta":{"a.json":{"version":1}}},"signatures":[]}'


@fuzzing(60)
@given(spoilt_json(msgspec.json.encode(_ENTRY)))
def test_a_journal_is_read_or_tells_nothing(data: bytes) -> None:
    storage = MemoryStorage()
    storage.put(journal_key(_ENTRY.id), data)
    assert len(judged(Journal(storage).entries, refusal=()) or []) <= 1
    found = judged(lambda: Journal(storage).find(_RELEASE), refusal=())
    assert found is None or found.release == _RELEASE


@fuzzing(90)
@given(spoilt_json(_HOLDER))
def test_a_lock_is_read_and_named_or_tells_nothing(data: bytes) -> None:
    holder = judged(lambda: _parse(data), refusal=())
    if holder is not None:
        assert str(holder).encode()
        assert holder.ends_at is None or math.isfinite(holder.ends_at)


@fuzzing(90)
@given(spoilt_json(_METADATA))
def test_metadata_is_read_by_the_server_or_refused(data: bytes) -> None:
    judged(lambda: _decode("metadata/1.snapshot.json", data), refusal=OperatorError)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys") / "keys"
    one = KeyCount(keys=1, threshold=1)
    Keyring.generate(directory, products=["alpha"], plan=KeyPlan(root=one, targets=one), demo=True)
    return directory


_KEYRING_SAMPLE = msgspec.json.encode({"format": 1, "roles": {"root": {"threshold": 1, "keys": []}}})


@fuzzing(40)
@given(data=spoilt_json(_KEYRING_SAMPLE))
def test_a_keyring_is_opened_or_refused(keys: Path, data: bytes) -> None:
    path = keys / KEYRING_FILE
    genuine = path.read_bytes()
    try:
        path.write_bytes(data)
        judged(lambda: Keyring.open(keys), refusal=(OperatorError, TrustError))
    finally:
        path.write_bytes(genuine)


@pytest.mark.parametrize("data", [b'{"host":"\xff"}', b'{"x":' + b"[" * 100_000])
def test_bytes_that_are_no_text_or_nest_without_end_are_no_bug(keys: Path, data: bytes) -> None:
    # The decoder raises errors of its own kinds for these, and none of the callers knew.
    storage = MemoryStorage()
    storage.put(journal_key(_ENTRY.id), data.replace(b"host", b"channel"))
    assert Journal(storage).find(_RELEASE) is None
    assert _parse(data) is None
    with pytest.raises(OperatorError):
        _decode("x", b'{"signed":{"version":1,"expires":"\xff"}}' if b"\xff" in data else data)
