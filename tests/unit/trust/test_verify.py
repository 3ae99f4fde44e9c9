"""The offline check finds every flipped byte and says where."""

from datetime import timedelta
from pathlib import Path

import pytest
from tests.signed_tree import BETA, OTHER_RELEASE, RELEASE, STABLE, SignedTree

from overhaul.trust.layout import TIMESTAMP_KEY
from overhaul.trust.verify import Fault, MetadataReport, verify_metadata

_EXPECTED_POINTS = 400


@pytest.fixture
def tree(tmp_path: Path) -> SignedTree:
    tree = SignedTree(tmp_path / "keys")
    tree.put(STABLE, b"stable 1")
    tree.put(RELEASE, b"release 1")
    tree.rotate("root")
    tree.put(BETA, b"beta 1")
    return tree


def _check(tree: SignedTree) -> MetadataReport:
    return verify_metadata(tree.files.get, now=tree.now)


def test_a_sound_tree_has_no_findings_and_everything_is_listed(tree: SignedTree) -> None:
    report = _check(tree)

    assert report.findings == ()
    assert sorted(report.targets) == [BETA, STABLE, RELEASE]
    assert {role: version for role, (version, _expires) in report.roles.items()} == {
        "root": 2,
        "timestamp": 5,
        "snapshot": 4,
        "targets": 1,
        "alpha": 2,
        "alpha-policy": 3,
        "other": 1,
        "other-policy": 1,
    }


def test_a_flipped_byte_anywhere_is_found(tree: SignedTree) -> None:
    """Each file is damaged at places spread over it, with the bit that turns digits' case and with another."""
    referenced = sorted(_check(tree).referenced)
    step = max(1, sum(len(tree.files[key]) for key in referenced) // _EXPECTED_POINTS)
    missed = []
    for key in referenced:
        sound = tree.files[key]
        for position in range(0, len(sound), step):
            for bit in (0x20, 0x01):
                damaged = bytearray(sound)
                damaged[position] ^= bit
                tree.files[key] = bytes(damaged)
                if not _check(tree).findings:
                    missed.append((key, position, bit))
        tree.files[key] = sound

    assert missed == []


def test_a_truncated_file_is_found(tree: SignedTree) -> None:
    for key in sorted(_check(tree).referenced):
        sound = tree.files[key]
        for length in (0, 1, len(sound) // 2, len(sound) - 1):
            tree.files[key] = sound[:length]
            assert _check(tree).findings, (key, length)
        tree.files[key] = sound


def test_every_missing_file_is_found_at_its_key(tree: SignedTree) -> None:
    for key in sorted(_check(tree).referenced - {"metadata/2.root.json"}):
        sound = tree.files.pop(key)
        findings = _check(tree).findings
        assert (Fault.MISSING, key) in [(finding.fault, finding.key) for finding in findings]
        tree.files[key] = sound


def test_what_no_longer_counts_is_not_referenced(tree: SignedTree) -> None:
    report = _check(tree)

    assert "metadata/1.alpha.json" not in report.referenced
    assert "metadata/1.root.json" in report.referenced
    assert TIMESTAMP_KEY in report.referenced


def test_expiry_is_a_finding_and_the_rest_is_still_checked(tree: SignedTree) -> None:
    tree.now += timedelta(days=3)
    report = _check(tree)

    assert [(finding.fault, finding.key) for finding in report.findings] == [(Fault.EXPIRED, TIMESTAMP_KEY)]
    assert len(report.targets) == 3


def test_a_path_in_the_wrong_role_is_a_finding(tree: SignedTree) -> None:
    target = tree.add_bytes(OTHER_RELEASE, b"foreign")
    tree.relist(("alpha", tree.forge("alpha", lambda signed: signed.targets.update({OTHER_RELEASE: target}))))
    report = _check(tree)

    assert [finding.fault for finding in report.findings] == [Fault.MISPLACED]
    assert OTHER_RELEASE not in report.targets


def test_a_whole_tree_of_other_keys_is_found_when_the_first_root_is_known(tree: SignedTree, tmp_path: Path) -> None:
    genuine = tree.files["metadata/1.root.json"]
    other = SignedTree(tmp_path / "other-keys")

    assert verify_metadata(tree.files.get, now=tree.now, anchor=genuine).findings == ()
    assert verify_metadata(other.files.get, now=tree.now).findings == ()
    assert verify_metadata(other.files.get, now=tree.now, anchor=genuine).findings != ()
