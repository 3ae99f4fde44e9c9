"""Each attack on an update repository, over HTTP, against the real client.

A device has refreshed and read a policy and a release. Then the repository turns bad in one way at a time. It
must refuse by the class that names the attack, and keep exactly what it trusted before.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.loopback import LoopbackServer, serving
from tests.signed_tree import (
    BETA,
    NOON,
    OTHER_RELEASE,
    RELEASE,
    STABLE,
    Device,
    SignedTree,
    claim_signed_at,
)

from overhaul.errors import OverhaulError
from overhaul.transfer.fetcher import InterruptedTransferError, OversizeError, RefusedStatusError
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import Engine, FetchSettings
from overhaul.trust.client import TrustedRepository
from overhaul.trust.keyring import Keyring
from overhaul.trust.layout import TIMESTAMP_KEY, metadata_key, target_key
from overhaul.trust.refusals import (
    BadSignatureError,
    BuildsRefusedError,
    MalformedMetadataError,
    MixAndMatchError,
    RollbackError,
    StaleRepositoryError,
    UnknownTargetError,
    WrongTargetError,
)

_FETCHING = FetchSettings(allow_http=True, min_bytes_per_s=1000, engine=Engine.AUTOMATIC)
#: Where slowness is the attack; elsewhere a machine that stands still for a moment must not pass for one.
_IMPATIENT = dataclasses.replace(_FETCHING, min_speed_window_s=0.3)


class Scene:
    """A publisher, a server and a device that trusts the publisher's first state."""

    def __init__(self, directory: Path, server: LoopbackServer) -> None:
        self.directory = directory
        self.server = server
        self.tree = SignedTree(directory / "keys", with_builds=True)
        server.files = self.tree.files
        self.tree.put(STABLE, b"stable 1")
        self.tree.put(BETA, b"beta 1")
        self.tree.put(RELEASE, b"release 1")
        self.first = dict(self.tree.files)
        self.device = Device(directory / "state", server.url, self.tree.files["metadata/1.root.json"], self.fetcher())
        repository = self.device.repository()
        repository.refresh()
        assert repository.read_target(STABLE) == b"stable 1"
        assert repository.read_target(RELEASE) == b"release 1"

    def fetcher(self) -> Any:
        return open_fetcher(_FETCHING)

    def publish_more(self) -> None:
        self.tree.put(STABLE, b"stable 2")
        self.tree.put(RELEASE, b"release 2")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with serving() as server:
        yield Scene(tmp_path, server)


def _asked(server: LoopbackServer, since: int) -> list[str]:
    return [seen.path for seen in server.requests[since:]]


# --- the attacks ---------------------------------------------------------------------------------------------


def _refresh(repository: TrustedRepository) -> None:
    repository.refresh()


def _read(path: str) -> Callable[[TrustedRepository], None]:
    def act(repository: TrustedRepository) -> None:
        repository.read_target(path)

    return act


@dataclass(frozen=True)
class Attack:
    """What is done to the repository, and what the device must make of it."""

    name: str
    prepare: Callable[[Scene], object]
    refused_by: type[OverhaulError]
    #: What refuses; what it does before may be accepted.
    act: Callable[[TrustedRepository], None] = _refresh
    before: Callable[[TrustedRepository], None] = lambda _repository: None


def _serve(key: str, data: bytes) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        scene.publish_more()
        scene.tree.files[key] = data

    return prepare


def _junk(role: str) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        scene.publish_more()
        scene.tree.files[scene.tree.key_of(role)] = b"\x00junk"

    return prepare


def _junk_target(scene: Scene) -> None:
    scene.publish_more()
    target = scene.tree.read(scene.tree.key_of("alpha-policy")).signed.targets[STABLE]
    scene.tree.files[target_key(STABLE, target.hashes["sha256"])] = b"x" * target.length


def _swapped_target(scene: Scene) -> None:
    """The genuine beta policy, served as the stable one."""
    scene.tree.put(STABLE, b"stable 2")
    scene.tree.put(BETA, b"beta 02!")
    signed = scene.tree.read(scene.tree.key_of("alpha-policy")).signed.targets
    scene.tree.files[target_key(STABLE, signed[STABLE].hashes["sha256"])] = b"beta 02!"


def _old_timestamp(scene: Scene) -> None:
    scene.publish_more()
    scene.device.repository().refresh()
    scene.tree.files[TIMESTAMP_KEY] = scene.first[TIMESTAMP_KEY]


def _old_snapshot(scene: Scene) -> None:
    """A thief of the timestamp key announces the first snapshot again."""
    old = scene.first[scene.tree.key_of("snapshot")]
    scene.publish_more()
    scene.device.repository().refresh()
    scene.tree.announce(old)


def _old_role(role: str) -> Callable[[Scene], None]:
    """A thief of the online keys lists an old version of a role."""

    def prepare(scene: Scene) -> None:
        old = scene.first[scene.tree.key_of(role)]
        scene.publish_more()
        scene.device.repository().refresh()
        scene.tree.relist((role, old))

    return prepare


def _forgotten_role(scene: Scene) -> None:
    scene.tree.relist(forget=["other"])


def _mixed(role: str) -> Callable[[Scene], None]:
    """The former file of a role under the name of the newest."""

    def prepare(scene: Scene) -> None:
        old = scene.tree.files[scene.tree.key_of(role)]
        scene.publish_more()
        scene.tree.files[scene.tree.key_of(role)] = old

    return prepare


def _misnumbered(scene: Scene) -> None:
    """The listed digest is right, the listed version is not."""

    def renumber(snapshot: Any) -> None:
        snapshot.meta["alpha-policy.json"].version += 1

    data = scene.tree.files[scene.tree.key_of("alpha-policy")]
    scene.tree.files[metadata_key("alpha-policy", scene.tree.version("alpha-policy") + 1)] = data
    scene.tree.announce(scene.tree.forge("snapshot", renumber))


def _foreign(scene: Scene) -> Keyring:
    return Keyring.generate(scene.directory / "thief", products=["alpha", "other"])


def _unknown_key(role: str) -> Callable[[Scene], None]:
    """A role signed by keys nobody named; the online roles vouch for it."""

    def prepare(scene: Scene) -> None:
        forged = scene.tree.forge(role, keyring=_foreign(scene))
        if role == "timestamp":
            scene.tree.files[TIMESTAMP_KEY] = forged
        elif role == "snapshot":
            scene.tree.announce(forged)
        else:
            scene.tree.relist((role, forged))

    return prepare


def _usurped_root(scene: Scene) -> None:
    scene.tree.files["metadata/2.root.json"] = scene.tree.usurp(_foreign(scene))


def _signed_by_too_few(role: str) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        forged = scene.tree.forge(role, signatures=1)
        if role == "root":
            scene.tree.files["metadata/2.root.json"] = forged
        else:
            scene.tree.relist((role, forged))

    return prepare


def _lists(path: str, *, role: str, signed_by: str) -> Callable[[Scene], None]:
    """The keys of `signed_by` list `path` in `role`; everything else is in order."""

    def prepare(scene: Scene) -> None:
        target = scene.tree.add_bytes(path, b"foreign bytes")

        def name_it(signed: Any) -> None:
            signed.targets[path] = target

        scene.tree.relist((role, scene.tree.forge(role, name_it, signed_by=signed_by)))

    return prepare


def _skipped_root(scene: Scene) -> None:
    scene.tree.files["metadata/2.root.json"] = scene.tree.forge(
        "root", lambda signed: setattr(signed, "version", signed.version + 1)
    )


def _endless(role: str) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        scene.publish_more()
        key = "metadata/2.root.json" if role == "root" else scene.tree.key_of(role)
        scene.server.behave(key, endless=True)

    return prepare


def _endless_target(scene: Scene) -> None:
    scene.publish_more()
    target = scene.tree.read(scene.tree.key_of("alpha")).signed.targets[RELEASE]
    scene.server.behave(target_key(RELEASE, target.hashes["sha256"]), endless=True)


def _slow(scene: Scene) -> None:
    scene.publish_more()
    scene.server.behave(TIMESTAMP_KEY, trickle_s=0.02)
    scene.device.fetcher = open_fetcher(_IMPATIENT)


def _time_passes(days: float) -> Callable[[Scene], None]:
    return lambda scene: scene.device.clock.forward(days=days)


def _expired_role(role: str) -> Callable[[Scene], None]:
    """The timestamp is renewed day by day, but nobody renews `role`."""

    def prepare(scene: Scene) -> None:
        def outlived(signed: Any) -> None:
            signed.expires = NOON

        scene.device.clock.forward(minutes=1)
        if role == "snapshot":
            scene.tree.announce(scene.tree.forge(role, outlived))
        else:
            scene.tree.relist((role, scene.tree.forge(role, outlived)))

    return prepare


ATTACKS = [
    Attack("arbitrary timestamp", _junk("timestamp"), MalformedMetadataError),
    Attack("arbitrary snapshot", _junk("snapshot"), MixAndMatchError),
    Attack("arbitrary root", _serve("metadata/2.root.json", b"{}"), MalformedMetadataError),
    Attack("arbitrary policy role", _junk("alpha-policy"), MixAndMatchError, _read(STABLE), _refresh),
    Attack("arbitrary target", _junk_target, WrongTargetError, _read(STABLE), _refresh),
    Attack("another genuine target", _swapped_target, WrongTargetError, _read(STABLE), _refresh),
    Attack("rollback of the timestamp", _old_timestamp, RollbackError),
    Attack("rollback of the snapshot", _old_snapshot, RollbackError),
    Attack("rollback of a policy", _old_role("alpha-policy"), RollbackError),
    Attack("rollback of a product", _old_role("alpha"), RollbackError),
    Attack("a role dropped from the snapshot", _forgotten_role, RollbackError),
    Attack("a root version skipped", _skipped_root, RollbackError),
    Attack("indefinite freeze", _time_passes(3), StaleRepositoryError),
    Attack("a snapshot outlived", _expired_role("snapshot"), StaleRepositoryError),
    Attack("delegations outlived", _expired_role("targets"), StaleRepositoryError),
    Attack("a policy outlived", _expired_role("alpha-policy"), StaleRepositoryError, _read(STABLE), _refresh),
    Attack("mix and match of the snapshot", _mixed("snapshot"), MixAndMatchError),
    Attack("mix and match of a policy", _mixed("alpha-policy"), MixAndMatchError, _read(STABLE), _refresh),
    Attack("a digest listed with another version", _misnumbered, MixAndMatchError, _read(STABLE), _refresh),
    Attack("timestamp by an unknown key", _unknown_key("timestamp"), BadSignatureError),
    Attack("snapshot by an unknown key", _unknown_key("snapshot"), BadSignatureError),
    Attack("delegations by unknown keys", _unknown_key("targets"), BadSignatureError),
    Attack("policy by an unknown key", _unknown_key("alpha-policy"), BadSignatureError, _read(STABLE), _refresh),
    Attack("a root signed by the keys it brings along", _usurped_root, BadSignatureError),
    Attack("root below its threshold", _signed_by_too_few("root"), BadSignatureError),
    Attack("delegations below their threshold", _signed_by_too_few("targets"), BadSignatureError),
    Attack("product below its threshold", _signed_by_too_few("alpha"), BadSignatureError, _read(RELEASE), _refresh),
    Attack(
        "a policy key signs the product role",
        _lists(RELEASE, role="alpha", signed_by="alpha-policy"),
        BadSignatureError,
        _read(RELEASE),
        _refresh,
    ),
    Attack(
        "a policy role lists a release",
        _lists(f"{RELEASE}.new", role="alpha-policy", signed_by="alpha-policy"),
        UnknownTargetError,
        _read(f"{RELEASE}.new"),
        _refresh,
    ),
    Attack(
        "a product role lists a policy",
        _lists("alpha/policy/new.json", role="alpha", signed_by="alpha"),
        UnknownTargetError,
        _read("alpha/policy/new.json"),
        _refresh,
    ),
    Attack(
        "the keys of one product sign for another",
        _lists(OTHER_RELEASE, role="other", signed_by="alpha"),
        BadSignatureError,
        _read(OTHER_RELEASE),
        _refresh,
    ),
    Attack(
        "the role of one product lists a release of another",
        _lists(OTHER_RELEASE, role="alpha", signed_by="alpha"),
        UnknownTargetError,
        _read(OTHER_RELEASE),
        _refresh,
    ),
    Attack(
        "the builds role lists a release",
        _lists(f"{RELEASE}.new", role="builds", signed_by="builds"),
        UnknownTargetError,
        _read(f"{RELEASE}.new"),
        _refresh,
    ),
    Attack("endless timestamp", _endless("timestamp"), OversizeError),
    Attack("endless snapshot", _endless("snapshot"), OversizeError),
    Attack("endless root", _endless("root"), OversizeError),
    Attack("endless target", _endless_target, OversizeError, _read(RELEASE), _refresh),
    Attack("slow retrieval", _slow, InterruptedTransferError),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused_by_name_and_changes_nothing(scene: Scene, attack: Attack) -> None:
    before = scene.device.clock.moment
    attack.prepare(scene)
    repository = scene.device.repository()
    attack.before(repository)
    trusted = scene.device.trusted()

    with pytest.raises(attack.refused_by) as caught:
        attack.act(repository)

    assert type(caught.value) is attack.refused_by
    assert str(caught.value).endswith(".")
    assert scene.device.trusted() == trusted
    # What was trusted before is still of use, in a process that starts afterwards.
    scene.device.clock.moment = before
    if attack.act is _refresh:
        assert scene.device.repository().read_target(RELEASE).startswith(b"release")


def test_the_same_repository_without_an_attack_is_accepted(scene: Scene) -> None:
    scene.publish_more()
    repository = scene.device.repository()

    repository.refresh()

    assert repository.read_target(STABLE) == b"stable 2"
    assert repository.read_target(RELEASE) == b"release 2"


# --- fast forward --------------------------------------------------------------------------------------------


def test_a_fast_forward_ends_when_the_stolen_online_keys_are_replaced(scene: Scene) -> None:
    genuine = dict(scene.tree.files)
    snapshot = scene.tree.forge("snapshot", lambda signed: setattr(signed, "version", 2**31))
    scene.tree.announce(snapshot, lambda signed: setattr(signed, "version", 2**31))
    scene.device.repository().refresh()
    scene.tree.files.clear()
    scene.tree.files.update(genuine)
    with pytest.raises(RollbackError):
        scene.device.repository().refresh()

    for role in ("timestamp", "snapshot"):
        scene.tree.rotate(role)
    scene.publish_more()
    repository = scene.device.repository()
    repository.refresh()

    assert repository.read_target(STABLE) == b"stable 2"
    assert scene.tree.version("timestamp") < 100


def test_a_stolen_time_floor_falls_when_the_timestamp_key_is_replaced(scene: Scene) -> None:
    year_2099 = datetime(2099, 1, 1, tzinfo=UTC)
    genuine = dict(scene.tree.files)
    scene.tree.announce(scene.tree.files[scene.tree.key_of("snapshot")], claim_signed_at(year_2099))
    # The rest is expired at that time, which the device finds out at its next refresh.
    scene.device.repository().refresh()
    assert scene.device.repository().time_floor == year_2099
    with pytest.raises(StaleRepositoryError):
        scene.device.repository().refresh()

    scene.tree.files.clear()
    scene.tree.files.update(genuine)
    scene.tree.rotate("timestamp")
    scene.publish_more()
    repository = scene.device.repository()
    repository.refresh()

    assert repository.time_floor == NOON
    assert repository.read_target(STABLE) == b"stable 2"


# --- roots ---------------------------------------------------------------------------------------------------


def test_a_device_that_slept_through_several_root_rotations_follows_the_chain(scene: Scene) -> None:
    for _ in range(3):
        scene.tree.rotate("root")
    scene.publish_more()

    repository = scene.device.repository()
    repository.refresh()

    assert repository.read_target(STABLE) == b"stable 2"
    assert "metadata/root_history/4.root.json" in scene.device.trusted()


def test_a_new_root_is_kept_even_when_the_rest_of_its_repository_is_refused(scene: Scene) -> None:
    stolen = scene.tree.forge("timestamp")
    scene.tree.rotate("timestamp")
    scene.tree.files[TIMESTAMP_KEY] = stolen
    with pytest.raises(BadSignatureError):
        scene.device.repository().refresh()

    # Now the thief hides the root that revoked the stolen key.
    hidden = scene.tree.files.pop("metadata/2.root.json")
    with pytest.raises(BadSignatureError):
        scene.device.repository().refresh()

    assert scene.device.trusted()["metadata/root_history/2.root.json"] == hidden


def test_an_outlived_root_is_refused_until_a_newer_one_comes(scene: Scene) -> None:
    def outlived(signed: Any) -> None:
        signed.expires = NOON

    scene.tree.files["metadata/2.root.json"] = scene.tree.forge("root", outlived)
    scene.device.clock.forward(minutes=1)
    with pytest.raises(StaleRepositoryError) as caught:
        scene.device.repository().refresh()
    assert caught.value.role == "root"

    scene.tree.edit(lambda editor: editor.refresh())
    scene.device.repository().refresh()

    assert scene.tree.version("root") == 3


# --- builds --------------------------------------------------------------------------------------------------


def test_an_image_made_on_demand_is_only_for_devices_that_opted_in(scene: Scene) -> None:
    path = "builds/openwrt/0123/image.json"
    scene.tree.put(path, b"built")
    refusing, accepting = scene.device.repository(), scene.device.repository(accept_builds=True)
    asked = len(scene.server.requests)

    with pytest.raises(BuildsRefusedError):
        refusing.read_target(path)
    assert _asked(scene.server, asked) == []
    accepting.refresh()

    assert accepting.read_target(path) == b"built"


# --- clocks --------------------------------------------------------------------------------------------------


def test_a_clock_at_1970_works_but_lets_nothing_in_that_expired_before_the_floor(scene: Scene) -> None:
    scene.device.clock.moment = datetime(1970, 1, 1, tzinfo=UTC)
    scene.publish_more()
    repository = scene.device.repository()
    repository.refresh()
    assert repository.read_target(STABLE) == b"stable 2"
    assert repository.time_floor == NOON

    def expired(signed: Any) -> None:
        signed.expires = NOON - timedelta(seconds=1)

    scene.tree.announce(scene.tree.files[scene.tree.key_of("snapshot")], expired)
    trusted = scene.device.trusted()
    with pytest.raises(StaleRepositoryError):
        scene.device.repository().refresh()

    assert scene.device.trusted() == trusted


def test_a_clock_at_1970_is_held_up_by_the_root_a_fresh_device_was_given(tmp_path: Path) -> None:
    with serving() as server:
        tree = SignedTree(tmp_path / "keys")
        server.files = tree.files

        def long_expired(signed: Any) -> None:
            signed.expires = NOON - timedelta(days=1)

        tree.announce(tree.files[tree.key_of("snapshot")], long_expired)
        device = Device(tmp_path / "state", server.url, tree.files["metadata/1.root.json"], open_fetcher(_FETCHING))
        device.clock.moment = datetime(1970, 1, 1, tzinfo=UTC)

        with pytest.raises(StaleRepositoryError):
            device.repository().refresh()


def test_a_clock_at_2099_refuses_everything_and_bricks_nothing(scene: Scene) -> None:
    scene.publish_more()
    trusted = scene.device.trusted()
    scene.device.clock.moment = datetime(2099, 1, 1, tzinfo=UTC)
    with pytest.raises(StaleRepositoryError) as caught:
        scene.device.repository().refresh()
    assert "clock" in str(caught.value)
    assert "2099" in str(caught.value)
    assert scene.device.trusted() == trusted

    scene.device.clock.moment = NOON
    repository = scene.device.repository()
    repository.refresh()

    assert repository.read_target(STABLE) == b"stable 2"


def test_a_clock_set_back_does_not_bring_expired_metadata_to_life(scene: Scene) -> None:
    scene.tree.now += timedelta(days=1)
    scene.device.clock.forward(days=1)
    scene.publish_more()
    scene.device.repository().refresh()
    scene.device.clock.forward(days=-200)

    def ends_within_the_first_day(signed: Any) -> None:
        signed.expires = NOON + timedelta(hours=12)

    scene.tree.announce(scene.tree.files[scene.tree.key_of("snapshot")], ends_within_the_first_day)
    with pytest.raises(StaleRepositoryError) as caught:
        scene.device.repository().refresh()

    assert caught.value.reference == NOON + timedelta(days=1)


# --- polls ---------------------------------------------------------------------------------------------------


def test_an_unchanged_poll_is_one_conditional_request(scene: Scene) -> None:
    asked = len(scene.server.requests)
    assert not scene.device.repository().poll()

    [request] = scene.server.requests[asked:]
    assert request.path == TIMESTAMP_KEY
    assert "if-none-match" in request.headers


def test_a_poll_by_a_server_without_validators_still_sees_that_nothing_changed(scene: Scene) -> None:
    scene.server.behave(TIMESTAMP_KEY, sends_etag=False)
    scene.publish_more()
    scene.device.repository().refresh()
    assert not scene.device.repository().poll()

    assert "if-none-match" not in scene.server.requests[-1].headers


def test_a_poll_sees_what_is_new_until_a_refresh_took_it_in(scene: Scene) -> None:
    scene.publish_more()
    assert scene.device.repository().poll()
    assert scene.device.repository().poll()
    scene.device.repository().refresh()

    assert not scene.device.repository().poll()


def test_a_poll_and_the_refresh_after_it_ask_for_nothing_twice(scene: Scene) -> None:
    scene.publish_more()
    asked = len(scene.server.requests)
    repository = scene.device.repository()
    assert repository.poll()
    repository.refresh()
    repository.read_target(STABLE)

    paths = _asked(scene.server, asked)
    assert len(paths) == len(set(paths))
    # Timestamp, the next root, snapshot, the policy's role, the policy: the delegations did not change.
    assert len(paths) == 5


def test_the_first_refresh_of_a_device_takes_at_most_seven_requests(scene: Scene, tmp_path: Path) -> None:
    root = scene.tree.files["metadata/1.root.json"]
    device = Device(tmp_path / "other-state", scene.server.url, root, scene.fetcher())
    asked = len(scene.server.requests)
    repository = device.repository()
    assert repository.poll()
    repository.refresh()
    repository.read_target(STABLE)

    assert len(_asked(scene.server, asked)) <= 7


def test_reading_again_what_was_read_needs_no_request(scene: Scene) -> None:
    asked = len(scene.server.requests)
    repository = scene.device.repository()
    assert repository.read_target(STABLE) == b"stable 1"
    assert repository.read_target(RELEASE) == b"release 1"

    assert _asked(scene.server, asked) == []


def test_an_unchanged_answer_never_extends_a_signature(scene: Scene) -> None:
    scene.device.clock.forward(hours=47)
    assert not scene.device.repository().poll()
    scene.device.clock.forward(hours=2)
    trusted = scene.device.trusted()
    with pytest.raises(StaleRepositoryError) as caught:
        scene.device.repository().poll()
    assert "freezes" in str(caught.value)

    assert scene.device.trusted() == trusted


def test_an_unchanged_answer_is_judged_by_the_time_floor_too(scene: Scene) -> None:
    scene.device.clock.moment = datetime(1970, 1, 1, tzinfo=UTC)
    assert not scene.device.repository().poll()

    floor = scene.device.state / "floor.json"
    floor.write_bytes(floor.read_bytes().replace(b'"signed_at":178', b'"signed_at":179'))
    with pytest.raises(StaleRepositoryError):
        scene.device.repository().poll()


def test_an_answer_of_not_modified_that_nobody_asked_for_is_refused(scene: Scene, tmp_path: Path) -> None:
    root = scene.tree.files["metadata/1.root.json"]
    device = Device(tmp_path / "other-state", scene.server.url, root, scene.fetcher())
    scene.server.behave(TIMESTAMP_KEY, statuses=[304])

    with pytest.raises(RefusedStatusError):
        device.repository().poll()


def test_a_poll_of_endless_data_is_cut_off(scene: Scene) -> None:
    scene.server.behave(TIMESTAMP_KEY, endless=True)

    with pytest.raises(OversizeError):
        scene.device.repository().poll()


def test_an_old_process_judges_what_it_loaded_by_the_time_it_is_now(scene: Scene) -> None:
    repository = scene.device.repository()
    repository.refresh()
    assert repository.read_target(STABLE) == b"stable 1"
    scene.device.clock.forward(days=3)

    with pytest.raises(StaleRepositoryError):
        repository.read_target(STABLE)


def test_a_server_error_is_a_network_error_and_changes_nothing(scene: Scene) -> None:
    scene.publish_more()
    trusted = scene.device.trusted()
    for key in (TIMESTAMP_KEY, "metadata/2.root.json", scene.tree.key_of("snapshot")):
        scene.server.behave(key, statuses=[503])
        with pytest.raises(RefusedStatusError):
            scene.device.repository().refresh()

    assert scene.device.trusted() == trusted
