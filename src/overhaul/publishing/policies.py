"""Changes of what channels offer: promote, recall, rollouts, hardware and floors, all through one path.

Each takes the lock, reads the signed policy, lets a pure function of `policy.edit` make the next one, and signs it
with the policy key. Only promoting needs more: its deltas are made by publishing the image to the channel again.
Who looked at a policy before deciding gives its revision as `expected_revision` (0 for a channel that has none yet),
and nothing is changed when somebody else changed it since.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from overhaul.errors import InputError
from overhaul.policy import edit as edits
from overhaul.policy.document import (
    Floor,
    Policy,
    PolicyEntry,
    Recall,
    VersionAndBuild,
    encode_policy,
    policy_target_path,
)
from overhaul.policy.hardware import HardwareRules
from overhaul.policy.rollout import Rollout
from overhaul.publishing.dialects import dialects_of, point_dialects, sign_answers
from overhaul.publishing.opening import Repository
from overhaul.release.channels import Channels
from overhaul.release.record import ReleaseId
from overhaul.repository.signed import SignedChange
from overhaul.trust import roles
from overhaul.trust.editor import UnknownProductError
from overhaul.trust.keyring import MissingKeyError


@dataclass(frozen=True, kw_only=True)
class PolicyChanged:
    """What a change of a policy did."""

    policy: Policy
    #: False when the policy said so already.
    changed: bool

    def entry(self, release: ReleaseId) -> PolicyEntry | None:
        """Return the release's entry after the change."""
        return self.policy.entry(release)


class PolicyMovedError(InputError):
    """The policy is not the one that was looked at."""

    http_status = 409

    def __init__(self, *, product: str, channel: str, expected: int, found: int) -> None:
        self.product = product
        self.channel = channel
        self.expected = expected
        self.found = found
        super().__init__(
            f"The policy of {product} {channel} was changed meanwhile: it is at revision {found}, and revision "
            f"{expected} was looked at. Look at it again before changing it; nothing was done."
        )


def check_product(repository: Repository, product: str) -> None:
    """Raise `ProductNotConfiguredError` unless the configuration has `product`."""
    repository.settings.product(product)


def check_channel(repository: Repository, product: str, channel: str) -> None:
    """Raise `UnknownChannelError` unless the product's configuration lists `channel`."""
    _channels(repository, product).stability(channel)


def check_can_sign(change: SignedChange, *, product: str, releases: bool) -> None:
    """Raise `MissingKeyError` unless the keys are here to change the product's policies and, if wanted, releases."""
    if product not in change.editor.products:
        raise UnknownProductError(product=product, known=change.editor.products)
    needed = {roles.policy_role(product), roles.SNAPSHOT, roles.TIMESTAMP} | ({product} if releases else set())
    for status in change.editor.status():
        if status.role in needed and not status.can_sign:
            raise MissingKeyError(
                role=status.role, have=status.keys_held, need=status.threshold, directory=change.keyring.directory
            )


def set_rollout(
    repository: Repository,
    release: ReleaseId,
    *,
    channel: str,
    rollout: Rollout | None,
    expected_revision: int | None = None,
) -> PolicyChanged:
    """Open a release of a channel to another part of the devices; None opens it to all."""

    def changed(_change: SignedChange, policy: Policy, now: int) -> Policy:
        return edits.set_rollout(policy, release, rollout, now=now)

    return _edit_policy(
        repository,
        product=release.product,
        channel=channel,
        purpose="channel rollout",
        edit=changed,
        expected_revision=expected_revision,
    )


def set_hardware(
    repository: Repository, release: ReleaseId, *, channel: str, rules: HardwareRules | None
) -> PolicyChanged:
    """Offer a release of a channel to other hardware; None means any."""

    def changed(_change: SignedChange, policy: Policy, now: int) -> Policy:
        return edits.set_hardware(policy, release, rules, now=now)

    return _edit_policy(repository, product=release.product, channel=channel, purpose="channel hardware", edit=changed)


def recall(
    repository: Repository,
    release: ReleaseId,
    *,
    channel: str,
    reason: str,
    allow_lower: bool = False,
    replaced_by: VersionAndBuild | None = None,
    expected_revision: int | None = None,
) -> PolicyChanged:
    """Offer a release of a channel to nobody any more."""

    def changed(_change: SignedChange, policy: Policy, now: int) -> Policy:
        order = Recall(reason=reason, since=now, allow_lower=allow_lower, replaced_by=replaced_by)
        return edits.recall(policy, release, order, now=now)

    return _edit_policy(
        repository,
        product=release.product,
        channel=channel,
        purpose="release recall",
        edit=changed,
        expected_revision=expected_revision,
    )


def drop(repository: Repository, release: ReleaseId, *, channel: str) -> PolicyChanged:
    """Take a release out of a channel; devices that run it keep running it."""

    def changed(_change: SignedChange, policy: Policy, now: int) -> Policy:
        return edits.drop_entry(policy, release, now=now)

    return _edit_policy(repository, product=release.product, channel=channel, purpose="release drop", edit=changed)


def promote(
    repository: Repository,
    release: ReleaseId,
    *,
    source: str,
    target: str,
    rollout: Rollout | None = None,
    expected_revision: int | None = None,
) -> PolicyChanged:
    """Put a release of the channel `source` into the more stable channel `target`."""
    check_product(repository, release.product)
    _channels(repository, release.product).check_promotion(source=source, target=target)

    def changed(change: SignedChange, policy: Policy, now: int) -> Policy:
        origin = change.policy(product=release.product, channel=source)
        if origin is None:
            raise edits.UnknownReleaseError(release=release, channel=source)
        return edits.promote(origin, policy, release, rollout=rollout, now=now)

    return _edit_policy(
        repository,
        product=release.product,
        channel=target,
        purpose="release promote",
        edit=changed,
        expected_revision=expected_revision,
    )


def set_floor(repository: Repository, floor: Floor, *, product: str, channel: str) -> PolicyChanged:
    """Set the given lower bounds of a variant and arch; those that are None stay as they are."""

    def changed(_change: SignedChange, policy: Policy, now: int) -> Policy:
        held = policy.floor(variant=floor.variant, arch=floor.arch)
        support = held.support if floor.support is None else floor.support
        minimum = held.minimum if floor.minimum is None else floor.minimum
        merged = msgspec.structs.replace(floor, support=support, minimum=minimum)
        return edits.set_floor(policy, merged, now=now)

    return _edit_policy(repository, product=product, channel=channel, purpose="channel floor", edit=changed)


def _edit_policy(
    repository: Repository,
    *,
    product: str,
    channel: str,
    purpose: str,
    edit: Callable[[SignedChange, Policy, int], Policy],
    expected_revision: int | None = None,
) -> PolicyChanged:
    check_product(repository, product)
    check_channel(repository, product, channel)
    with repository.locked(purpose) as lock:
        change = repository.change(lock)
        check_can_sign(change, product=product, releases=False)
        now = int(repository.clock())
        before = change.policy(product=product, channel=channel)
        found = 0 if before is None else before.revision
        if expected_revision is not None and found != expected_revision:
            raise PolicyMovedError(product=product, channel=channel, expected=expected_revision, found=found)
        after = edit(change, before or edits.new_policy(product=product, channel=channel, now=now), now)
        if after != before:
            change.editor.put_target(policy_target_path(product, channel), encode_policy(after))
        # Also when nothing changed: a change before this one may have died between signing and pointing.
        dialects, policies = dialects_of(repository, product), change.policies(product=product)
        sign_answers(change.editor, dialects, product, policies, now=now)
        change.commit()
        point_dialects(dialects, policies, now=now)
    return PolicyChanged(policy=after, changed=after != before)


def _channels(repository: Repository, product: str) -> Channels:
    return Channels(repository.settings.product(product).channels)
