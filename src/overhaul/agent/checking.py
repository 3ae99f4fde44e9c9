"""Asking the repository, and deciding on this device what its answer means for it."""

from dataclasses import dataclass

import msgspec

from overhaul.agent.beginning import Session, device_facts, running_release, session
from overhaul.agent.metering import reason_to_wait
from overhaul.agent.outcomes import Checked
from overhaul.agent.ports import Device, Repository
from overhaul.errors import TrustError
from overhaul.policy.document import Policy, decode_policy, policy_target_path
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.floors import highest_floor
from overhaul.policy.selection import Decision, Offer, decide
from overhaul.release.record import Release, ReleaseId, decode_release


class ForeignRecordError(TrustError):
    """A record that was signed under another release's name."""

    def __init__(self, *, wanted: ReleaseId, found: ReleaseId) -> None:
        self.wanted = wanted
        self.found = found
        super().__init__(f"The record of {wanted} describes {found}; nothing of it was used. Publish it again.")


class UnlistedImageError(TrustError):
    """A record of a listed release that holds another image than the policy was signed for."""

    def __init__(self, *, release: ReleaseId, channel: str) -> None:
        self.release = release
        self.channel = channel
        super().__init__(
            f"The record of {release} holds another image than the one that channel {channel} lists; nothing of it "
            "was used. If you did not change it yourself, a release key was stolen."
        )


class UnlistedConfigurationError(TrustError):
    """A record of a listed release that tells of another configuration than the policy was signed for."""

    def __init__(self, *, release: ReleaseId, channel: str) -> None:
        self.release = release
        self.channel = channel
        super().__init__(
            f"The record of {release} tells of another configuration than the one that channel {channel} lists; "
            "nothing of it was used. If you did not change it yourself, a release key was stolen."
        )


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The decision and what it was made from."""

    repository: Repository
    changed: bool
    policy: Policy
    facts: DeviceFacts
    decision: Decision


def check(device: Device) -> Checked:
    """Return what the device may do now; starts nothing and changes no slot."""
    with session(device) as opened:
        running = running_release(device, opened.state, booted=opened.view.booted)
        answered = ask(opened, running)
        decision = answered.decision
        return Checked(
            running=running,
            decision=decision,
            repository_changed=answered.changed,
            waits=reason_to_wait(device, decision.entry) if isinstance(decision, Offer) else "",
        )


def ask(opened: Session, running: ReleaseId) -> Answered:
    """Poll the repository, take what is new, and decide."""
    device = opened.device
    facts = device_facts(device, opened.state, running)
    repository = device.open_repository()
    changed = repository.poll()
    if changed:
        repository.refresh()
    path = policy_target_path(facts.product, facts.channel)
    policy = decode_policy(repository.read_target(path))
    floor = highest_floor(opened.state.floor, policy, facts, keyids=repository.signers_of(path))
    facts = msgspec.structs.replace(facts, minimum=None if floor is None else floor.minimum)
    # A clock that stands in the past must not hold a rollout back for ever.
    now = max(device.now(), int(repository.time_floor.timestamp()))
    decision = decide(policy, facts, now)
    opened.save(msgspec.structs.replace(opened.state, floor=floor, checked_at=device.now()))
    return Answered(repository=repository, changed=changed, policy=policy, facts=facts, decision=decision)


def read_release(answered: Answered, wanted: ReleaseId) -> Release:
    """Return the verified record of `wanted`; of a listed release it holds what the policy was signed for."""
    release = decode_release(answered.repository.read_target(wanted.target_path))
    if release.id != wanted:
        raise ForeignRecordError(wanted=wanted, found=release.id)
    entry = answered.policy.entry(wanted)
    if entry is not None and entry.index_sha256 not in {None, release.image.index.sha256}:
        raise UnlistedImageError(release=wanted, channel=answered.policy.channel)
    if entry is not None and entry.configuration_sha256 not in {None, _configuration_sha256(release)}:
        raise UnlistedConfigurationError(release=wanted, channel=answered.policy.channel)
    return release


def lists_configuration(answered: Answered, release: Release) -> bool:
    """Tell whether what the record of a release tells of its configuration may go into a device's own.

    A policy of an earlier Overhaul that lists no digests at all cannot vouch for images either.
    """
    entry = answered.policy.entry(release.id)
    return entry is None or entry.index_sha256 is None or entry.configuration_sha256 is not None


def _configuration_sha256(release: Release) -> str | None:
    return None if release.configuration is msgspec.UNSET else release.configuration.header_sha256
