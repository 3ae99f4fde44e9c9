"""Rotating, revoking and adding keys, here and elsewhere: devices follow, and a death costs nothing."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.crash.killing import run_killed_at
from tests.hostile import signed_files
from tests.published import PublishedRepository
from tests.signed_tree import Device, MemoryFetcher

from overhaul.cli import keys as keys_cli
from overhaul.errors import InputError, OverhaulError, TrustError
from overhaul.publishing.keys import (
    IncompleteRequestError,
    KeyKnownError,
    NothingToSignError,
    OfflineSignaturesError,
    PendingChangeError,
    TooFewKeysError,
    UnknownKeyError,
    abandon_change,
    add_key,
    import_signatures,
    request_signatures,
    revoke_key,
    rotate_role,
    set_threshold,
)
from overhaul.trust.editor import OutdatedDraftError, UnknownRoleError
from overhaul.trust.keyring import Keyring, KeyringListing, MissingKeyError
from overhaul.trust.keys import ThresholdError
from overhaul.trust.refusals import BadSignatureError
from overhaul.trust.requests import SigningRequest, UnreadableRequestError, decode_request

ROLES = ("root", "targets", "snapshot", "timestamp", "alpha", "alpha-policy")
STABLE = "alpha/policy/stable.json"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedRepository:
    made = PublishedRepository(tmp_path_factory.mktemp("made") / "repository")
    made.publish("1.0", "b1", image_size=70_000)
    return made


class Fleet:
    """A repository that only this test changes, and a device that trusted it before."""

    def __init__(self, published: PublishedRepository, directory: Path) -> None:
        shutil.copytree(published.directory, directory / "repository")
        shutil.copytree(published.directory.with_name("repository-keys"), directory / "repository-keys")
        self.made = PublishedRepository.__new__(PublishedRepository)
        self.made.__dict__ = {**published.__dict__, "directory": directory / "repository"}
        self.made.public = directory / "repository/store/public"
        self.keys, self.safe = directory / "repository-keys", directory / "safe"
        self.files: dict[str, bytes] = {}
        root = (directory / "repository/root.json").read_bytes()
        self.device = Device(directory / "state", "memory:", root, MemoryFetcher(self.files))
        self.device.clock.moment = self.made.repository.now()
        self.follow()

    def follow(self) -> bytes:
        """Let the device follow, and return its channel's policy."""
        self.files.clear()
        self.files.update(signed_files(self.made.public))
        repository = self.device.repository()
        repository.refresh()
        return repository.read_target(STABLE)

    def listing(self, role: str) -> KeyringListing:
        [found] = [one for one in Keyring.open(self.keys).listing() if one.role == role]
        return found

    def lock_away(self, *roles: str) -> None:
        """Take the private keys of some roles to where the publisher is not."""
        self.safe.mkdir(exist_ok=True)
        keyring = Keyring.open(self.keys)
        for role in roles:
            for key in keyring.role(role).keys:
                (self.keys / key.file).rename(self.safe / key.file)

    def signed_elsewhere(self, request: SigningRequest) -> SigningRequest:
        """Return a request as it comes back from the safe."""
        shutil.copy(self.keys / "keyring.json", self.safe)
        keyring = Keyring.open(self.safe)
        held = keyring.held(request.keyids)
        return request.signed_with(
            lambda keyid: keyring.signers("", keyids=[keyid], threshold=1)[0] if keyid in held else None
        )


@pytest.fixture
def fleet(published: PublishedRepository, tmp_path: Path) -> Fleet:
    return Fleet(published, tmp_path)


@pytest.mark.parametrize("role", ROLES)
def test_a_rotated_role_is_signed_by_new_keys_only_and_devices_follow(fleet: Fleet, role: str) -> None:
    before, policy = fleet.listing(role), fleet.follow()

    changed = rotate_role(fleet.made.repository, role)

    assert changed.changed
    assert set(changed.roles[0].revoked) == set(before.keyids)
    assert set(fleet.listing(role).keyids) == set(changed.roles[0].added)
    assert not set(fleet.listing(role).keyids) & set(before.keyids)
    assert fleet.follow() == policy
    assert fleet.made.repository.published().report.findings == ()
    fleet.made.publish("2.0", "b2", image_size=70_000)
    assert fleet.follow() != policy


def test_a_rotation_can_change_how_many_keys_there_are(fleet: Fleet) -> None:
    rotate_role(fleet.made.repository, "root", keys=5, threshold=3)

    assert (len(fleet.listing("root").keyids), fleet.listing("root").threshold) == (5, 3)
    fleet.follow()


def test_a_revoked_key_counts_nowhere_and_needs_enough_others(fleet: Fleet) -> None:
    first, second = fleet.listing("root").keyids[:2]

    revoke_key(fleet.made.repository, first[:12])
    with pytest.raises(TooFewKeysError):
        revoke_key(fleet.made.repository, second)
    revoke_key(fleet.made.repository, second, replace=True)

    assert len(fleet.listing("root").keyids) == 2
    assert not {first, second} & set(fleet.listing("root").keyids)
    fleet.follow()


def test_keys_are_added_and_thresholds_set(fleet: Fleet) -> None:
    add_key(fleet.made.repository, "alpha")
    set_threshold(fleet.made.repository, "alpha", 2)

    assert (len(fleet.listing("alpha").keyids), fleet.listing("alpha").threshold) == (2, 2)
    fleet.follow()
    with pytest.raises(ThresholdError):
        set_threshold(fleet.made.repository, "alpha", 3)


def test_a_key_that_openssl_made_elsewhere_is_added_by_its_public_half(fleet: Fleet, tmp_path: Path) -> None:
    for name, kind in (
        ("ed", ["-algorithm", "ed25519"]),
        ("ec", ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
    ):
        private = tmp_path / f"{name}.pem"
        subprocess.run(["openssl", "genpkey", *kind, "-out", private], check=True, capture_output=True)
        private.chmod(0o600)
        public = subprocess.run(["openssl", "pkey", "-in", private, "-pubout"], check=True, capture_output=True).stdout
        add_key(fleet.made.repository, "root", public=public)
        with pytest.raises(KeyKnownError):
            add_key(fleet.made.repository, "root", public=public)
    set_threshold(fleet.made.repository, "root", 3)
    fleet.follow()
    [held] = [len(one.held) for one in Keyring.open(fleet.keys).listing() if one.role == "root"]
    assert (held, len(fleet.listing("root").keyids)) == (3, 5)

    # Two of the five are gone for good, so the third signature must be one that is made elsewhere.
    for key in Keyring.open(fleet.keys).role("root").keys[:1]:
        (fleet.keys / key.file).unlink()
    with pytest.raises(OfflineSignaturesError):
        rotate_role(fleet.made.repository, "timestamp")
    runner, request = CliRunner(), tmp_path / "q.json"
    there = ["--repository", str(fleet.made.directory)]
    assert runner.invoke(keys_cli.command, ["sign-request", str(request), *there]).exit_code == 0
    for name in ("ed", "ec"):
        signing = ["sign", str(request), "--key", str(tmp_path / f"{name}.pem"), "--yes"]
        assert runner.invoke(keys_cli.command, signing).exit_code == 0
    imported = runner.invoke(keys_cli.command, ["import", str(request), *there, "--json"])
    assert imported.exit_code == 0, imported.exception
    assert [one["role"] for one in json.loads(imported.stdout)["roles"]] == ["timestamp"]
    fleet.follow()


@pytest.mark.parametrize("role", ROLES)
def test_what_waits_for_keys_elsewhere_is_signed_there_and_published(fleet: Fleet, role: str) -> None:
    policy = fleet.follow()
    fleet.lock_away("root", "targets", "alpha")
    with pytest.raises(OfflineSignaturesError):
        rotate_role(fleet.made.repository, role)
    assert fleet.follow() == policy
    waiting = fleet.listing(f"~~{role}").keyids

    request = request_signatures(fleet.made.repository)
    with pytest.raises(IncompleteRequestError):
        import_signatures(fleet.made.repository, request)
    request = decode_request(fleet.signed_elsewhere(decode_request(request.encode())).encode())
    import_signatures(fleet.made.repository, request)

    assert fleet.listing(role).keyids == waiting
    assert fleet.follow() == policy
    assert fleet.made.repository.published().report.findings == ()


def test_a_request_says_what_would_change_and_counts_what_is_missing(fleet: Fleet) -> None:
    fleet.lock_away("root")
    with pytest.raises(OfflineSignaturesError):
        revoke_key(fleet.made.repository, fleet.listing("root").keyids[0])
    request = request_signatures(fleet.made.repository)

    [root] = request.roles
    assert (root.role, root.missing) == ("root", 2)
    assert f"    - {fleet.listing('root').keyids[0]}" in root.describe()
    [signed] = fleet.signed_elsewhere(request).roles
    assert signed.missing == 0
    assert fleet.signed_elsewhere(request).id == request.id


def test_a_root_that_grows_old_is_signed_again_elsewhere(fleet: Fleet) -> None:
    fleet.lock_away("root", "targets")
    fleet.made.now += 360 * 86400
    fleet.made.refresh()
    request = request_signatures(fleet.made.repository, renew=("root", "targets"))
    assert {one.role for one in request.roles} == {"root", "targets"}
    assert "nothing but its date" in "".join(request.roles[0].describe())

    import_signatures(fleet.made.repository, fleet.signed_elsewhere(request))

    fleet.device.clock.moment = fleet.made.repository.now()
    fleet.made.now += 30 * 86400
    fleet.made.refresh()
    fleet.device.clock.moment = fleet.made.repository.now()
    fleet.follow()


def _changed_by(change: Callable[[dict[str, object]], object]) -> Callable[[SigningRequest], SigningRequest]:
    def changed(request: SigningRequest) -> SigningRequest:
        document = json.loads(request.encode())
        metadata = json.loads(document["roles"][0]["metadata"])
        change(metadata)
        document["roles"][0]["metadata"] = json.dumps(metadata)
        return decode_request(json.dumps(document).encode())

    return changed


def _other_content(metadata: dict[str, object]) -> None:
    metadata["signed"]["expires"] = "2099-01-01T00:00:00Z"  # type: ignore[index]


def _spoilt_signature(metadata: dict[str, object]) -> None:
    for one in metadata["signatures"]:  # type: ignore[attr-defined]
        one["sig"] = f"{int(one['sig'], 16) ^ 1:0{len(one['sig'])}x}"


@pytest.mark.parametrize("change", [_other_content, _spoilt_signature])
def test_a_request_that_was_changed_on_its_way_publishes_nothing(
    fleet: Fleet, change: Callable[[dict[str, object]], object]
) -> None:
    fleet.lock_away("root")
    with pytest.raises(OfflineSignaturesError):
        rotate_role(fleet.made.repository, "timestamp")
    signed = fleet.signed_elsewhere(request_signatures(fleet.made.repository))
    before = signed_files(fleet.made.public)

    with pytest.raises(BadSignatureError):
        import_signatures(fleet.made.repository, _changed_by(change)(signed))

    assert signed_files(fleet.made.public) == before


def test_a_request_is_refused_when_the_repository_went_on(fleet: Fleet) -> None:
    fleet.lock_away("targets")
    request = request_signatures(fleet.made.repository, renew=("targets",))
    for file in fleet.safe.iterdir():
        shutil.copy(file, fleet.keys)
    signed = fleet.signed_elsewhere(request)
    rotate_role(fleet.made.repository, "alpha")

    with pytest.raises(OutdatedDraftError):
        import_signatures(fleet.made.repository, signed)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda repository: rotate_role(repository, "beta"), UnknownRoleError),
        (lambda repository: revoke_key(repository, "zz"), UnknownKeyError),
        (lambda repository: revoke_key(repository, ""), UnknownKeyError),
        (lambda repository: rotate_role(repository, "root", keys=2, threshold=3), ThresholdError),
        (lambda repository: add_key(repository, "root", public=b"nonsense"), InputError),
        (request_signatures, NothingToSignError),
        (lambda repository: request_signatures(repository, renew=("nobody",)), UnknownRoleError),
        (lambda _repository: decode_request(b"{}"), UnreadableRequestError),
        (lambda _repository: decode_request(b'{"format":9,"roles":[]}'), UnreadableRequestError),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(
    fleet: Fleet, wrong: Callable[[object], object], error: type[OverhaulError]
) -> None:
    before = signed_files(fleet.made.public), (fleet.keys / "keyring.json").read_bytes()

    with pytest.raises(error) as caught:
        wrong(fleet.made.repository)

    assert caught.value.exit_code == 3
    assert (signed_files(fleet.made.public), (fleet.keys / "keyring.json").read_bytes()) == before


def test_a_second_change_waits_until_the_first_is_published_or_dropped(fleet: Fleet) -> None:
    fleet.lock_away("root")
    repository = fleet.made.repository
    with pytest.raises(OfflineSignaturesError):
        rotate_role(repository, "root")
    with pytest.raises(PendingChangeError):
        add_key(repository, "root")
    with pytest.raises(PendingChangeError):
        set_threshold(repository, "root", 1)
    with pytest.raises(OfflineSignaturesError):
        rotate_role(repository, "root")
    assert len(list(fleet.keys.glob("root-*.pem"))) == 3

    assert abandon_change(fleet.made.repository, "root")

    assert not abandon_change(fleet.made.repository, "root")
    with pytest.raises(NothingToSignError):
        request_signatures(fleet.made.repository)


def test_online_keys_that_are_missing_are_asked_for_where_the_publisher_is(fleet: Fleet) -> None:
    fleet.lock_away("timestamp")

    with pytest.raises(MissingKeyError):
        rotate_role(fleet.made.repository, "alpha")


def test_who_has_no_key_that_counts_is_told_so(fleet: Fleet, tmp_path: Path) -> None:
    fleet.lock_away("root")
    with pytest.raises(OfflineSignaturesError):
        rotate_role(fleet.made.repository, "timestamp")
    file = tmp_path / "q.json"
    file.write_bytes(request_signatures(fleet.made.repository).encode())
    Keyring.generate(tmp_path / "others", products=(), demo=True)

    answer = CliRunner().invoke(keys_cli.command, ["sign", str(file), "--keys", str(tmp_path / "others"), "--yes"])

    assert isinstance(answer.exception, TrustError)
    assert answer.exception.exit_code == 4


def _rotate(fleet: Fleet, role: str) -> None:
    rotate_role(fleet.made.repository, role)


@pytest.mark.parametrize("role", ["root", "timestamp"])
def test_a_rotation_killed_anywhere_is_run_again_once_and_loses_no_key(
    published: PublishedRepository, tmp_path: Path, role: str
) -> None:
    point, passed = 0, None
    while passed is None:
        shutil.rmtree(tmp_path / "try", ignore_errors=True)
        (tmp_path / "try").mkdir()
        fleet = Fleet(published, tmp_path / "try")
        before, policy = fleet.listing(role).keyids, fleet.follow()
        passed = run_killed_at(partial(_rotate, fleet, role), point)
        if role == "timestamp":
            # Between a new root and its timestamp devices wait for the second run.
            with contextlib.suppress(BadSignatureError):
                fleet.follow()
        else:
            assert fleet.follow() == policy
        # A dead publisher's lock ends by itself.
        fleet.made.now += 3600

        # A run that was killed when all was done is no reason for a second one.
        if fleet.listing(role).keyids == before:
            _rotate(fleet, role)

        assert fleet.follow() == policy
        now = fleet.listing(role)
        assert len(now.held) == len(before)
        assert not set(now.keyids) & set(before)
        assert f"~{role}-2" not in {one.role for one in Keyring.open(fleet.keys).listing()}
        point += 1
    assert passed > 15
