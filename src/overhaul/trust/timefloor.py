"""The earliest time it can be: what verified metadata says about when it was signed.

A device's clock may stand at 1970 or be set back on purpose. Metadata that verified was signed in the past, so
no reckoning may fall behind its signing time. A thief of an online key could claim a signing time far ahead and
so make everything genuine look expired; therefore each claim is remembered with the keys that made it, and a
claim counts only while all of these are still named by the trusted root: replacing the key is the cure.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Annotated

import msgspec


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """A role that was signed at a time, and the keys the role had."""

    #: Seconds since 1970 UTC, up to the last that a calendar date can be written for.
    signed_at: Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799)]
    keyids: tuple[str, ...]


class TimeFloor(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the earliest possible time."""

    witnesses: dict[str, Witness] = {}

    @property
    def moment(self) -> datetime:
        """The earliest time it can be."""
        return datetime.fromtimestamp(max((item.signed_at for item in self.witnesses.values()), default=0), UTC)

    def reference(self, clock: datetime) -> datetime:
        """Return the time to judge expiry by: the clock's, but never before the floor."""
        return max(clock, self.moment)

    def trusting(self, keyids_of_role: Mapping[str, Collection[str]]) -> "TimeFloor":
        """Return what remains when only the keys `keyids_of_role` names are trusted."""
        kept = {
            role: witness
            for role, witness in self.witnesses.items()
            if set(witness.keyids) <= set(keyids_of_role.get(role, ()))
        }
        return TimeFloor(witnesses=kept)

    def learn(self, role: str, *, claim: object, expires: datetime, keyids: Collection[str]) -> "TimeFloor":
        """Return the floor after verified metadata of `role` gave `claim` as its signing time.

        A claim that is no time, lies behind what the role claimed before, or is not before its own expiry
        teaches nothing.
        """
        if type(claim) is not int or not 0 < claim < expires.timestamp():
            return self
        known = self.witnesses.get(role)
        if known is not None and known.signed_at >= claim:
            return self
        return TimeFloor(witnesses={**self.witnesses, role: Witness(signed_at=claim, keyids=tuple(keyids))})
