"""Metadata from a repository nobody vouches for: spoilt bytes, and spoilt meanings under right signatures.

What is not signed must leave no trace: a device that refused it follows the genuine repository as before. What
is signed by a thief may stop a device, but only with an error of trust or of the network.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import MetaFile

from overhaul.errors import NetworkError, OverhaulError, TrustError
from overhaul.trust import roles
from overhaul.trust._loading import check_signed, parse
from overhaul.trust.layout import TIMESTAMP_KEY, metadata_key
from overhaul.trust.refusals import BadSignatureError, MalformedMetadataError, UnusableRootError
from tests.fuzz.mutations import as_json, fuzzing, judged, outside_bytes, spoilt_json, spoilt_value
from tests.signed_tree import NOON, RELEASE, STABLE, Device, MemoryFetcher, SignedTree

_FAMILY = (TrustError, NetworkError)
_BELOW_SNAPSHOT = ("targets", "alpha", "alpha-policy")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> SignedTree:
    tree = SignedTree(tmp_path_factory.mktemp("keys") / "keys")
    tree.put(STABLE, b"policy")
    tree.put(RELEASE, b"release")
    return tree


@pytest.fixture(scope="module")
def settled(tree: SignedTree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the state of a device that trusts the tree as it is."""
    state = tmp_path_factory.mktemp("settled")
    _look(_device(tree, state, dict(tree.files)))
    return state


@pytest.fixture(scope="module")
def newer(tree: SignedTree, settled: Path) -> dict[str, bytes]:
    """Return the files of the next state of the repository, in which everything has a new version."""
    tree.keyring.renew("timestamp")
    tree.edit(lambda editor: editor.rotate("timestamp"))
    tree.put(STABLE, b"policy 2")
    tree.put(RELEASE, b"release 2")
    return dict(tree.files)


def _device(tree: SignedTree, state: Path, files: dict[str, bytes]) -> Device:
    return Device(state, "memory:/", tree.files[metadata_key("root", 1)], MemoryFetcher(files))


def _look(device: Device) -> list[bytes]:
    repository = device.repository()
    if repository.poll():
        repository.refresh()
    return [repository.read_target(STABLE), repository.read_target(RELEASE)]


@contextmanager
def _copy_of(state: Path) -> Iterator[Path]:
    copy = state.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    if state.exists():
        shutil.copytree(state, copy)
    yield copy


_starts_anew = st.booleans()


@fuzzing(30)
@given(st.data(), _starts_anew)
def test_spoilt_metadata_is_refused_and_leaves_no_trace(
    tree: SignedTree, settled: Path, newer: dict[str, bytes], data: st.DataObject, anew: bool
) -> None:
    key = data.draw(st.sampled_from([tree.key_of(role) for role in (*roles.TOP_LEVEL, *_BELOW_SNAPSHOT[1:])]))
    spoilt = data.draw(spoilt_json(newer[key]))
    with _copy_of(settled.with_name("nothing") if anew else settled) as state:
        seen = judged(lambda: _look(_device(tree, state, {**newer, key: spoilt})), refusal=_FAMILY)
        assert seen is None or seen == [b"policy 2", b"release 2"]
        assert _look(_device(tree, state, newer)) == [b"policy 2", b"release 2"]


def _signed(tree: SignedTree, role: str, signed: Any) -> bytes:
    """Return metadata whose `signed` part is any JSON value, under the signatures of the role's keys."""
    try:
        covered = (encode_canonical(signed) or "{}").encode()
    except Exception:
        # What has no canonical form cannot be signed either; a thief would send it all the same.
        covered = b"{}"
    ring = tree.keyring.role(role)
    signatures = [
        signer.sign(covered).to_dict()
        for signer in tree.keyring.signers(role, keyids=[key.keyid for key in ring.keys], threshold=1)
    ]
    return as_json({"signed": signed, "signatures": signatures})


def _listed(tree: SignedTree, role: str, data: bytes, version: int, files: dict[str, bytes]) -> None:
    """Make the online roles vouch for a spoilt file, whatever is in it."""
    files[metadata_key(role, version)] = data
    listed = MetaFile.from_data(version, data, ["sha256"])
    if role != "snapshot":
        snapshot = tree.forge("snapshot", lambda signed: signed.meta.update({f"{role}.json": listed}))
        _listed(tree, "snapshot", snapshot, tree.version("snapshot") + 1, files)
        return
    files[TIMESTAMP_KEY] = tree.forge("timestamp", lambda signed: setattr(signed, "snapshot_meta", listed))


@fuzzing(40)
@given(st.data(), st.sampled_from((*roles.TOP_LEVEL, *_BELOW_SNAPSHOT[1:])), _starts_anew)
def test_what_a_thief_signs_is_taken_or_refused(
    tree: SignedTree, settled: Path, newer: dict[str, bytes], data: st.DataObject, role: str, anew: bool
) -> None:
    version = tree.version(role) + 1
    genuine = json.loads(newer[tree.key_of(role)])["signed"]
    signed = data.draw(spoilt_value({**genuine, "version": version}))
    files = dict(newer)
    spoilt = _signed(tree, role, signed)
    if role == "timestamp":
        files[TIMESTAMP_KEY] = spoilt
    elif role == "root":
        files[metadata_key("root", version)] = spoilt
    else:
        _listed(tree, role, spoilt, version, files)
    with _copy_of(settled.with_name("nothing") if anew else settled) as state:
        device = _device(tree, state, files)
        judged(lambda: _look(device), refusal=_FAMILY)
        # What was kept of it must not harm the next process.
        judged(lambda: _look(_device(tree, state, files)), refusal=_FAMILY)
        later = _device(tree, state, files)
        later.clock.forward(days=400)
        judged(lambda: _look(later), refusal=_FAMILY)
        assert later.repository().time_floor >= NOON or anew


@pytest.mark.parametrize("name", [True, 7, 0.5, None, ["alpha"], {"a": 1}])
def test_a_delegation_to_what_is_no_name_is_malformed(
    tree: SignedTree, settled: Path, newer: dict[str, bytes], name: object
) -> None:
    # python-tuf takes it for a role and fails when it makes an address of it.
    signed = json.loads(newer[tree.key_of("targets")])["signed"]
    signed["version"] += 1
    next(role for role in signed["delegations"]["roles"] if role["name"] == "alpha")["name"] = name
    files = dict(newer)
    _listed(tree, "targets", _signed(tree, "targets", signed), signed["version"], files)
    with _copy_of(settled) as state, pytest.raises(TrustError):
        _look(_device(tree, state, files))


@fuzzing(30)
@given(st.data())
def test_a_root_to_start_from_is_taken_or_refused(
    tree: SignedTree, settled: Path, newer: dict[str, bytes], data: st.DataObject
) -> None:
    root = data.draw(spoilt_json(newer[metadata_key("root", 1)]))
    with _copy_of(settled.with_name("nothing")) as state:
        device = Device(state, "memory:/", root, MemoryFetcher(newer))
        judged(lambda: _look(device), refusal=(*_FAMILY, UnusableRootError))


@fuzzing(30)
@given(st.data())
def test_a_damaged_store_is_mended_or_refused(
    tree: SignedTree, settled: Path, newer: dict[str, bytes], data: st.DataObject
) -> None:
    with _copy_of(settled) as state:
        path = data.draw(st.sampled_from(sorted(path for path in state.rglob("*") if path.is_file())))
        content = path.read_bytes()
        is_target = path.parent.name == "targets"
        path.write_bytes(data.draw(outside_bytes(content) if is_target else spoilt_json(content)))
        # The device's own disk: nobody attacks it, so any explained error will do.
        judged(lambda: _look(_device(tree, state, newer)), refusal=OverhaulError)


@fuzzing(90)
@given(st.data())
def test_the_publishers_own_reading_refuses_what_is_spoilt(
    tree: SignedTree, newer: dict[str, bytes], data: st.DataObject
) -> None:
    role = data.draw(st.sampled_from((*roles.TOP_LEVEL, *_BELOW_SNAPSHOT)))
    _read_and_check(tree, role, data.draw(spoilt_json(newer[tree.key_of(role)])))


def _read_and_check(tree: SignedTree, role: str, spoilt: bytes) -> None:
    root = tree.read(metadata_key("root", 1)).signed
    metadata = judged(lambda: parse(role, spoilt), refusal=MalformedMetadataError)
    if metadata is not None:
        judged(lambda: check_signed(role, metadata, root), refusal=(MalformedMetadataError, BadSignatureError))


def test_what_nobody_can_sign_is_malformed(tree: SignedTree) -> None:
    content = json.loads(tree.files[metadata_key("root", 1)])
    content["signed"]["unknown"] = 0.5
    root = tree.read(metadata_key("root", 1)).signed
    with pytest.raises(MalformedMetadataError, match=r"0\.5"):
        check_signed("root", parse("root", json.dumps(content).encode()), root)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("metadata/snapshot.json", b'"expires":"', b'"expires":"x'),
        ("floor.json", b'"signed_at":1', b'"signed_at":1000000'),
        ("poll.json", b'"etag":"', b'"etag":"\xff'),
    ],
)
def test_a_damaged_file_of_the_store_is_mended(
    tree: SignedTree, settled: Path, newer: dict[str, bytes], file: str, old: bytes, new: bytes
) -> None:
    with _copy_of(settled) as state:
        content = (state / file).read_bytes()
        assert old in content
        (state / file).write_bytes(content.replace(old, new))
        assert _look(_device(tree, state, newer)) == [b"policy 2", b"release 2"]
