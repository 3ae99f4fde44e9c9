"""Signing requests as files: whatever comes back is read whole, or refused in one sentence."""

import pytest
from hypothesis import given
from tests.fuzz.mutations import fuzzing, judged, outside_bytes
from tests.signed_tree import SignedTree

from overhaul.trust.editor import MetadataEditor
from overhaul.trust.refusals import MalformedMetadataError
from overhaul.trust.requests import SigningRequest, UnreadableRequestError, decode_request


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    tree = SignedTree(tmp_path_factory.mktemp("made") / "keys", products=["alpha"])
    for key in tree.keyring.role("targets").keys:
        (tree.keyring.directory / key.file).unlink()
    editor = MetadataEditor(tree.files.get, tree.keyring, tree.now)
    editor.renew("targets")
    return SigningRequest.of(editor.unsigned()).encode()


def test_a_request_survives_its_file(sample: bytes) -> None:
    request = decode_request(sample)

    assert request.encode() == sample
    assert [(one.role, one.missing) for one in request.roles] == [("targets", 2)]


def test_a_request_cut_anywhere_is_refused(sample: bytes) -> None:
    for length in range(0, len(sample.rstrip()), 7):
        with pytest.raises(UnreadableRequestError):
            decode_request(sample[:length])


def test_what_nobody_can_sign_is_refused(sample: bytes) -> None:
    with pytest.raises(MalformedMetadataError):
        decode_request(sample.replace(b'\\"version\\":2', b'\\"version\\":2.5'))


def test_any_bytes_are_a_request_or_refused(sample: bytes) -> None:
    @fuzzing(150)
    @given(outside_bytes(sample))
    def read(data: bytes) -> None:
        request = judged(lambda: decode_request(data), refusal=(UnreadableRequestError, MalformedMetadataError))
        if request is not None:
            assert request.id
            for one in request.signed_with(lambda _keyid: None).roles:
                assert one.describe()

    read()
