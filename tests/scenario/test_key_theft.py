"""What a thief of some of the keys can make devices do, over HTTP against the real agent: nothing that counts.

Each theft is tried as `test_agent_attacks` tries attacks without a key: the agent refuses by the class that names the
theft, the running slot stays byte for byte, and when the publisher has replaced the stolen keys, the device follows.
What a thief can do is to hold devices for a while; the drills show how long.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.fleet import PRODUCT, RealRepository, release_id, small_image
from tests.hostile import STABLE, Attack, Scene, World
from tests.loopback import LoopbackServer, serving
from tests.signed_tree import claim_signed_at

from overhaul.agent.checking import ForeignRecordError, UnlistedImageError
from overhaul.agent.outcomes import Checked, ExitCode, Updated
from overhaul.policy.document import Floor, Policy, PolicyEntry, Recall, UnreadablePolicyError, encode_policy
from overhaul.policy.selection import Cause, Hold, UpToDate
from overhaul.publishing.policies import set_floor
from overhaul.release.record import FileRef, encode_release
from overhaul.trust.layout import metadata_key
from overhaul.trust.refusals import (
    BadSignatureError,
    MixAndMatchError,
    RollbackError,
    StaleRepositoryError,
    UnknownTargetError,
)

OLD, NEW = release_id("1.0").target_path, release_id("2.0").target_path
POLICY_ROLE = f"{PRODUCT}-policy"
ONLINE = ("timestamp", "snapshot")


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackServer]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, server: LoopbackServer) -> World:
    return World.make(tmp_path_factory.mktemp("world"), server)


@pytest.fixture
def scene(world: World, tmp_path: Path, server: LoopbackServer) -> Scene:
    return Scene(world, tmp_path, server)


def _forged(role: str, change: Callable[[Any], object], *, signed_by: str | None = None) -> Callable[[Scene], None]:
    """A changed role, signed by the keys of `signed_by`; the online roles vouch for it."""

    def prepare(scene: Scene) -> None:
        scene.thief.relist((role, scene.thief.forge(role, change, signed_by=signed_by)))

    return prepare


def _lists(role: str, path: str, data: bytes, *, signed_by: str | None = None) -> Callable[[Scene], None]:
    """The keys of `signed_by` list bytes of the thief in `role`."""

    def prepare(scene: Scene) -> None:
        target = scene.thief.add_bytes(path, data)
        _forged(role, lambda signed: signed.targets.update({path: target}), signed_by=signed_by)(scene)

    return prepare


def _policy(*entries: PolicyEntry, floors: tuple[Floor, ...] = ()) -> Callable[[Scene], None]:
    """The thief's choice of releases, signed as a policy should be."""
    chosen = Policy(product=PRODUCT, channel="stable", revision=99, signed_at=0, entries=entries, floors=floors)
    return _lists(POLICY_ROLE, STABLE, encode_policy(chosen))


def _entry(version: str, recall: Recall | None = None) -> PolicyEntry:
    return PolicyEntry(variant="lite", arch="amd64", version=version, build_id=f"b{version}", recall=recall)


def _old_policy_again(scene: Scene) -> None:
    scene.learn_policy()
    old = metadata_key(POLICY_ROLE, scene.thief.version(POLICY_ROLE) - 1)
    scene.thief.relist((POLICY_ROLE, scene.thief.files[old]))


def _dropped_role(scene: Scene) -> None:
    scene.learn_policy()
    scene.thief.relist(forget=[PRODUCT])


def _signed_in_2099(scene: Scene) -> None:
    snapshot = scene.thief.files[scene.thief.key_of("snapshot")]
    scene.thief.announce(snapshot, claim_signed_at(datetime(2099, 1, 1, tzinfo=UTC)))


def _foreign_image(scene: Scene) -> None:
    """A record of the thief's own image under the name of 2.0, signed by the keys he has."""
    index = FileRef(path="content/indexes/aa/thief.caibx", size=1, sha256="aa" * 32)
    release = scene.release("2.0")
    forged = msgspec.structs.replace(release, image=msgspec.structs.replace(release.image, index=index))
    _lists(PRODUCT, NEW, encode_release(forged), signed_by=POLICY_ROLE)(scene)


def _record_under_another_name(scene: Scene) -> None:
    _lists(PRODUCT, NEW, scene.thief.files[scene.signed_key(OLD)])(scene)


def _another_image(scene: Scene) -> None:
    """The record of 2.0 with the genuine image of 1.0 in it."""
    forged = msgspec.structs.replace(scene.release("2.0"), image=scene.release("1.0").image)
    _lists(PRODUCT, NEW, encode_release(forged))(scene)


def _policy_by_its_key_alone(scene: Scene) -> None:
    """Signed right, but the online roles list another."""
    scene.thief.files[scene.thief.key_of(POLICY_ROLE)] = scene.thief.forge(POLICY_ROLE)


_METADATA, _POLICY, _ALL = Scene.learn_metadata, Scene.learn_policy, Scene.learn_everything
_POLICY_AND_ONLINE = (*ONLINE, POLICY_ROLE)
_UNSIGNED = release_id("9.0").target_path

THEFTS = [
    Attack("online keys sign a policy", _forged(POLICY_ROLE, lambda _signed: None, signed_by="snapshot"),
           BadSignatureError, _METADATA, stolen=ONLINE),
    Attack("online keys sign a record", _lists(PRODUCT, NEW, b"{}", signed_by="timestamp"),
           BadSignatureError, _POLICY, stolen=ONLINE),
    Attack("online keys bring back an old policy", _old_policy_again, RollbackError, stolen=ONLINE),
    Attack("online keys drop a role", _dropped_role, RollbackError, stolen=ONLINE),
    Attack("online keys claim another century", _signed_in_2099, StaleRepositoryError, _METADATA, stolen=ONLINE),
    Attack("the policy key alone signs a policy", _policy_by_its_key_alone, MixAndMatchError, _METADATA,
           stolen=(POLICY_ROLE,)),
    Attack("the policy key offers what nobody released", _policy(_entry("9.0")), UnknownTargetError, _POLICY,
           stolen=_POLICY_AND_ONLINE),
    Attack("the policy key lists a record", _lists(POLICY_ROLE, _UNSIGNED, b"{}"), UnknownTargetError,
           lambda scene: (_policy(_entry("9.0"))(scene), _POLICY(scene)), stolen=_POLICY_AND_ONLINE),
    Attack("the policy key signs a foreign image", _foreign_image, BadSignatureError, _POLICY,
           stolen=_POLICY_AND_ONLINE),
    Attack("the policy key signs no policy", _lists(POLICY_ROLE, STABLE, b"{}"), UnreadablePolicyError,
           Scene.learn_policy_bytes, stolen=_POLICY_AND_ONLINE),
    Attack("the product key signs a record under another name", _record_under_another_name, ForeignRecordError, _ALL,
           stolen=(*ONLINE, PRODUCT)),
    Attack("the product key puts another image under a listed release", _another_image, UnlistedImageError, _ALL,
           stolen=(*ONLINE, PRODUCT)),
]  # fmt: skip


@pytest.mark.parametrize("theft", THEFTS, ids=lambda theft: theft.name)
def test_a_thief_installs_nothing_and_devices_follow_the_new_keys(scene: Scene, theft: Attack) -> None:
    scene.require_refusal(theft)


def test_a_fast_forward_by_the_online_keys_ends_when_they_are_replaced(scene: Scene) -> None:
    def far_ahead(signed: Any) -> None:
        signed.version = 2**31

    scene.thief.announce(scene.thief.forge("snapshot", far_ahead), far_ahead)
    scene.learn_metadata()
    scene.end_attack()
    with pytest.raises(RollbackError):
        scene.update()
    scene.require_unharmed(wrote=False)

    scene.end_attack(stolen=ONLINE)

    scene.require_update()


def test_the_online_keys_can_hold_a_device_only_until_its_policy_ends(scene: Scene) -> None:
    def for_ever(signed: Any) -> None:
        signed.expires += timedelta(days=10_000)

    scene.thief.files.update(scene.first)
    scene.thief.announce(scene.thief.forge("snapshot", for_ever), for_ever)
    scene.passed = timedelta(days=89)
    frozen = scene.update()
    assert isinstance(frozen, Checked)
    assert isinstance(frozen.decision, UpToDate)

    scene.passed = timedelta(days=91)
    with pytest.raises(StaleRepositoryError) as caught:
        scene.update()

    assert caught.value.role == POLICY_ROLE
    scene.require_unharmed(wrote=False)
    scene.end_attack(stolen=ONLINE)
    scene.require_update()


def test_the_policy_key_leads_no_device_below_the_floor_it_was_told(scene: Scene, tmp_path: Path) -> None:
    set_floor(scene.publisher, Floor(variant="lite", arch="amd64", minimum="2.0"), product=PRODUCT, channel="stable")
    scene.take_over()
    scene.require_update("2.0")
    scene.take_over()
    _policy(_entry("1.0"), _entry("2.0", Recall(reason="come back", since=0, allow_lower=True)))(scene)

    held = scene.update()

    assert isinstance(held, Checked)
    assert isinstance(held.decision, Hold)
    assert held.exit_code is ExitCode.HELD
    assert Cause.BELOW_FLOOR in {reason.cause for reason in held.decision.reasons}
    assert scene.device.boot.primary() == scene.device.boot.simulate_boot() == "B"
    assert scene.device.slot("B").read_bytes() == scene.images["2.0"]
    scene.end_attack(stolen=_POLICY_AND_ONLINE)
    assert isinstance(scene.update(), Checked)
    image = small_image(tmp_path / "3.0", "3.0")
    scene.images["3.0"] = image.read_bytes()
    # Opened anew, with the new keys.
    RealRepository(scene.repository.directory).publish(image, "3.0")
    scene.require_update("3.0")


def test_a_floor_that_a_thief_puts_far_ahead_falls_with_his_key(scene: Scene) -> None:
    _policy(_entry("2.0"), floors=(Floor(variant="lite", arch="amd64", minimum="999"),))(scene)
    held = scene.update()
    assert isinstance(held, Checked)
    assert isinstance(held.decision, Hold)
    scene.require_unharmed(wrote=False)

    scene.end_attack(stolen=_POLICY_AND_ONLINE)

    scene.require_update()


def test_product_policy_and_online_keys_together_put_other_bytes_under_a_listed_release(scene: Scene) -> None:
    # The limit of what these keys are told apart for.
    _another_image(scene)
    _policy(_entry("2.0"))(scene)

    outcome = scene.update()

    assert isinstance(outcome, Updated)
    assert scene.device.slot("B").read_bytes() == scene.images["1.0"]
