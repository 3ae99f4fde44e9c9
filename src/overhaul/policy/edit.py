"""Changes of a policy: each function returns a new policy with the next revision, or refuses nonsense.

Nothing here signs or writes; `now` becomes the time of signing. A change that would alter nothing returns the
policy as it is, so a publish that died can simply be run again. All refusals are `InputError`s.
"""

import msgspec

from overhaul.errors import InputError
from overhaul.policy.checkpoints import Candidate, checkpoints_among
from overhaul.policy.document import Floor, Policy, PolicyEntry, Recall, VersionAndBuild
from overhaul.policy.hardware import HardwareRules
from overhaul.policy.rollout import Rollout
from overhaul.release.names import check_name, check_token
from overhaul.release.record import ReleaseId
from overhaul.release.versions import Version, release_order_key


class UnknownReleaseError(InputError):
    """A release that the channel does not hold."""

    http_status = 404

    def __init__(self, *, release: ReleaseId, channel: str) -> None:
        self.release = release
        self.channel = channel
        super().__init__(
            f"Channel {channel} does not hold {release}; `overhaul release list` shows what it holds, "
            "and publish or promote puts a release into it."
        )


class DuplicateReleaseError(InputError):
    """A release that the channel already holds, perhaps in another spelling."""

    http_status = 409

    def __init__(self, *, release: ReleaseId, held: PolicyEntry, channel: str) -> None:
        self.release = release
        self.held = held
        self.channel = channel
        super().__init__(
            f"Channel {channel} already holds {held.name} where {release} would stand; "
            "change that entry, or publish under a higher version or build id."
        )


class RecalledReleaseError(InputError):
    """A recalled release where one that can be installed is needed."""

    http_status = 409

    def __init__(self, *, release: ReleaseId, reason: str) -> None:
        self.release = release
        self.reason = reason
        super().__init__(
            f"{release} was recalled ({reason}) and does not come back; publish its successor under a higher "
            "version or build id."
        )


class NeededCheckpointError(InputError):
    """A change that would let supported devices jump over a checkpoint."""

    http_status = 409

    def __init__(self, *, checkpoint: ReleaseId, act: str) -> None:
        self.checkpoint = checkpoint
        super().__init__(
            f"Devices would jump over checkpoint {checkpoint}: {act}, or raise the support floor above it "
            "when no supported device is below it any more."
        )


class UnreachableReleaseError(InputError):
    """An entry or floor by which a release could never be installed."""


class UnusableReplacementError(InputError):
    """A release that cannot stand in for a recalled checkpoint."""


def new_policy(*, product: str, channel: str, now: int) -> Policy:
    """Return the first, empty policy of a channel."""
    return Policy(
        product=check_name("product", product), channel=check_name("channel", channel), revision=1, signed_at=now
    )


def put_entry(policy: Policy, entry: PolicyEntry, *, now: int) -> Policy:
    """Return `policy` with a release added; with exactly this entry in it already, `policy` itself."""
    _check_words(entry)
    release = entry.release_id(policy.product)
    held = _same_place(policy, entry)
    if held == entry:
        return policy
    if held is not None:
        raise DuplicateReleaseError(release=release, held=held, channel=policy.channel)
    _check_reachable(policy, entry)
    if entry.recall is not None:
        _check_replacement(policy, entry, entry.recall)
    return _changed(policy, (*policy.entries, entry), now=now)


def replace_entry(policy: Policy, entry: PolicyEntry, *, now: int) -> Policy:
    """Return `policy` with the entry of the same release changed to `entry`, for what has no function of its own.

    A recall can be neither added nor taken back this way, and a needed checkpoint stays one.
    """
    _check_words(entry)
    release = entry.release_id(policy.product)
    held = _held(policy, release)
    if held == entry:
        return policy
    if held.recall is not None:
        raise RecalledReleaseError(release=release, reason=held.recall.sentence_end)
    if entry.recall is not None:
        raise InputError(f"A changed entry of {release} cannot carry a recall; recall it by itself.")
    if not entry.checkpoint:
        _check_droppable(policy, held)
    _check_reachable(policy, entry)
    return _replaced(policy, held, entry, now=now)


def drop_entry(policy: Policy, release: ReleaseId, *, now: int) -> Policy:
    """Return `policy` without a release; devices that run it keep running it.

    Raises:
        NeededCheckpointError: It is a checkpoint that supported devices still have to pass.
    """
    held = _held(policy, release)
    _check_droppable(policy, held)
    return _changed(policy, tuple(entry for entry in policy.entries if entry is not held), now=now)


def keep_newest(policy: Policy, release: ReleaseId, *, count: int, now: int) -> Policy:
    """Return `policy` without the oldest releases beside `release`, of which every device has a better one.

    The `count` newest stay, so that there is something to go back to; checkpoints and what was recalled stay; and so
    does everything above the newest release that is open to all devices, whatever they are. Where a release requires
    a version to come from, or a checkpoint is not open to all, nothing is left out: an old release may be all that
    some devices can get to.
    """
    entries = policy.entries_for(variant=release.variant, arch=release.arch)
    open_to_all = next((place for place, entry in enumerate(entries) if _is_open_to_all(entry, now=now)), None)
    has_barrier = any(
        entry.requires is not None or (entry.checkpoint and not _is_open_to_all(entry, now=now)) for entry in entries
    )
    if open_to_all is None or has_barrier:
        return policy
    old = [
        entry
        for entry in entries[max(count, open_to_all + 1) :]
        if not entry.checkpoint and entry.recall is None and entry.release_id(policy.product) != release
    ]
    if not old:
        return policy
    unlisted = {id(entry) for entry in old}
    return _changed(policy, tuple(entry for entry in policy.entries if id(entry) not in unlisted), now=now)


def set_rollout(policy: Policy, release: ReleaseId, rollout: Rollout | None, *, now: int) -> Policy:
    """Return `policy` with a release open to another part of the devices; None opens it to all of them."""
    held = _live(policy, release)
    return _replaced(policy, held, msgspec.structs.replace(held, rollout=rollout), now=now)


def set_hardware(policy: Policy, release: ReleaseId, rules: HardwareRules | None, *, now: int) -> Policy:
    """Return `policy` with a release meant for other hardware; None, or rules without a predicate, mean any."""
    held = _live(policy, release)
    wanted = None if rules == HardwareRules() else rules
    return _replaced(policy, held, msgspec.structs.replace(held, hardware=wanted), now=now)


def recall(policy: Policy, release: ReleaseId, recall: Recall, *, now: int) -> Policy:
    """Return `policy` with a release recalled, or with another reason or another way out of an earlier recall.

    The time of an earlier recall is kept.
    """
    held = _held(policy, release)
    if not recall.reason.strip():
        raise InputError(f"The recall of {release} needs a reason; people and devices are shown it.")
    _check_replacement(policy, held, recall)
    if held.recall is not None:
        recall = msgspec.structs.replace(recall, since=held.recall.since)
    return _replaced(policy, held, msgspec.structs.replace(held, recall=recall), now=now)


def set_floor(policy: Policy, floor: Floor, *, now: int) -> Policy:
    """Return `policy` with the floors of one variant and arch changed; an empty floor removes them.

    Raises:
        UnreachableReleaseError: A floor stands above every release that could be installed.
    """
    check_name("variant", floor.variant)
    check_name("arch", floor.arch)
    if floor == policy.floor(variant=floor.variant, arch=floor.arch):
        return policy
    for word, version in (("support floor", floor.support), ("minimum version", floor.minimum)):
        if version is not None:
            _check_floor(policy, floor, word=word, version=version)
    others = [each for each in policy.floors if (each.variant, each.arch) != (floor.variant, floor.arch)]
    kept = others if floor.support is None and floor.minimum is None else [*others, floor]
    floors = tuple(sorted(kept, key=lambda each: (each.variant, each.arch)))
    return msgspec.structs.replace(policy, floors=floors, revision=policy.revision + 1, signed_at=now)


def promote(source: Policy, target: Policy, release: ReleaseId, *, rollout: Rollout | None = None, now: int) -> Policy:
    """Return `target` with a release copied from the channel `source`, open to all devices or as `rollout` says.

    Whether the direction is right is for `release.channels` to say.

    Raises:
        NeededCheckpointError: A checkpoint of `source` below the release, which devices of `target` have yet to
            pass, is not in `target`; promote it first.
    """
    if source.product != target.product or source.channel == target.channel:
        raise InputError(
            f"A release is promoted between two channels of one product, not from {source.product} "
            f"{source.channel} to {target.product} {target.channel}."
        )
    entry = _live(source, release)
    same = source.entries_for(variant=entry.variant, arch=entry.arch)
    for checkpoint in checkpoints_among(tuple(map(Candidate.of, same))):
        barrier = checkpoint.candidate.entry
        if barrier.order < entry.order and not any(_guards(target, member.entry, entry) for member in checkpoint.line):
            _check_not_needed(target, barrier, act="promote it first")
    return put_entry(target, msgspec.structs.replace(entry, rollout=rollout), now=now)


def _changed(policy: Policy, entries: tuple[PolicyEntry, ...], *, now: int) -> Policy:
    """The next revision with these entries, oldest first, so that one set of entries gives one document."""
    ordered = tuple(sorted(entries, key=lambda entry: (entry.variant, entry.arch, entry.order)))
    return msgspec.structs.replace(policy, entries=ordered, revision=policy.revision + 1, signed_at=now)


def _replaced(policy: Policy, held: PolicyEntry, entry: PolicyEntry, *, now: int) -> Policy:
    if entry == held:
        return policy
    return _changed(policy, tuple(entry if each is held else each for each in policy.entries), now=now)


def _held(policy: Policy, release: ReleaseId) -> PolicyEntry:
    held = policy.entry(release)
    if held is None:
        raise UnknownReleaseError(release=release, channel=policy.channel)
    return held


def _live(policy: Policy, release: ReleaseId) -> PolicyEntry:
    held = _held(policy, release)
    if held.recall is not None:
        raise RecalledReleaseError(release=release, reason=held.recall.sentence_end)
    return held


def _same_place(policy: Policy, entry: PolicyEntry) -> PolicyEntry | None:
    same = policy.entries_for(variant=entry.variant, arch=entry.arch)
    return next((each for each in same if each.order == entry.order), None)


def _is_open_to_all(entry: PolicyEntry, *, now: int) -> bool:
    is_rolled_out = entry.rollout is None or entry.rollout.percent_at(now) >= 100
    return is_rolled_out and entry.hardware is None and entry.recall is None


def _check_words(entry: PolicyEntry) -> None:
    check_name("variant", entry.variant)
    check_name("arch", entry.arch)
    check_token("version", entry.version)
    check_token("build id", entry.build_id)
    if entry.requires is not None:
        check_token("required version", entry.requires)


def _check_reachable(policy: Policy, entry: PolicyEntry) -> None:
    release = entry.release_id(policy.product)
    minimum = policy.floor(variant=entry.variant, arch=entry.arch).minimum
    if minimum is not None and Version(entry.version) < Version(minimum):
        raise UnreachableReleaseError(
            f"{release} is below {minimum}, the lowest version channel {policy.channel} lets devices install; "
            "publish a higher version."
        )
    if entry.requires is not None and Version(entry.requires) > Version(entry.version):
        raise UnreachableReleaseError(
            f"{release} cannot require version {entry.requires}, which is higher than its own; require a lower one."
        )


def _guards(target: Policy, checkpoint: PolicyEntry, entry: PolicyEntry) -> bool:
    """Whether nobody gets to `entry` in `target` without `checkpoint`, or it is that checkpoint itself."""
    held = _same_place(target, checkpoint)
    is_held = held is not None and held.checkpoint and checkpoint.order < entry.order
    return is_held or checkpoint.order == entry.order


def _check_droppable(policy: Policy, entry: PolicyEntry) -> None:
    if entry.checkpoint:
        _check_not_needed(policy, entry, act="keep it as it is")


def _check_not_needed(policy: Policy, checkpoint: PolicyEntry, *, act: str) -> None:
    support = policy.floor(variant=checkpoint.variant, arch=checkpoint.arch).support
    # A floor names no build id, so one at the checkpoint's own version may stand for builds below it.
    if support is None or Version(support) <= Version(checkpoint.version):
        raise NeededCheckpointError(checkpoint=checkpoint.release_id(policy.product), act=act)


def _check_replacement(policy: Policy, entry: PolicyEntry, recall: Recall) -> None:
    if recall.replaced_by is None:
        return
    release = entry.release_id(policy.product)
    if not entry.checkpoint:
        raise UnusableReplacementError(f"{release} is no checkpoint, so nothing has to stand in for it.")
    replacement = _at(policy, entry, recall.replaced_by)
    if replacement is None or replacement is entry or not replacement.checkpoint or replacement.recall is not None:
        version, build_id = recall.replaced_by
        raise UnusableReplacementError(
            f"{version} ({build_id}) cannot stand in for checkpoint {release}: name another checkpoint of its "
            f"variant and arch that is in channel {policy.channel} and not recalled."
        )


def _at(policy: Policy, entry: PolicyEntry, named: VersionAndBuild) -> PolicyEntry | None:
    same = policy.entries_for(variant=entry.variant, arch=entry.arch)
    return next((each for each in same if each.order == release_order_key(*named)), None)


def _check_floor(policy: Policy, floor: Floor, *, word: str, version: str) -> None:
    check_token(word, version)
    same = policy.entries_for(variant=floor.variant, arch=floor.arch)
    live = [entry for entry in same if entry.recall is None]
    if not live or Version(live[0].version) < Version(version):
        newest = live[0].name if live else "none"
        raise UnreachableReleaseError(
            f"The {word} {version} of {floor.variant}/{floor.arch} stands above every release that channel "
            f"{policy.channel} can offer (the newest is {newest}); publish one first."
        )
