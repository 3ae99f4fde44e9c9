"""The highest minimum version a device was ever told, and by whose keys.

The minimum stands in the policy, so a thief of the policy key could sign one without it and lead devices back to a
genuine release with known holes. A device therefore remembers the highest it was told and installs nothing below it,
whatever a later policy says. So that a thief who announces a minimum far ahead does not hold the device for ever,
it is remembered together with the keys that the policy role had, and counts only while all of them still are the
role's: replacing the policy key, which only offline keys can do, is the cure.
"""

from collections.abc import Collection

import msgspec

from overhaul.policy.document import Policy
from overhaul.policy.facts import DeviceFacts
from overhaul.release.names import Name, Token
from overhaul.release.versions import Version


class KnownFloor(msgspec.Struct, frozen=True, kw_only=True):
    """A minimum version, for whom it was signed, and the keys that could sign it."""

    product: Name
    channel: Name
    variant: Name
    arch: Name
    minimum: Token
    keyids: tuple[str, ...]


def highest_floor(
    known: KnownFloor | None, policy: Policy, facts: DeviceFacts, *, keyids: Collection[str]
) -> KnownFloor | None:
    """Return what is known after a verified policy, whose role now has the keys `keyids`, was read."""
    whose = (facts.product, facts.channel, facts.variant, facts.arch)
    if known is not None and (
        (known.product, known.channel, known.variant, known.arch) != whose or not set(known.keyids) <= set(keyids)
    ):
        known = None
    told = policy.floor(variant=facts.variant, arch=facts.arch).minimum
    if told is None or (policy.product, policy.channel) != whose[:2]:
        return known
    if known is not None and Version(told) <= Version(known.minimum):
        return known
    return KnownFloor(
        product=facts.product,
        channel=facts.channel,
        variant=facts.variant,
        arch=facts.arch,
        minimum=told,
        keyids=tuple(keyids),
    )
