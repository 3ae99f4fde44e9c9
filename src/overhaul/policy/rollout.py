"""Phased rollouts: which part of the devices a release is open to, decided on each device by itself.

A device's place for a release is a number in [0, 1) drawn by SHA-256 from its own random rollout id and the
release's seed. A release at p percent is open to the places below p / 100. So the answer for one device never
changes by itself, raising the percentage only adds devices, the places for two releases have nothing to do with
each other, and no identifier leaves the device.
"""

import hashlib
from datetime import UTC, datetime
from typing import Annotated

import msgspec

from overhaul.errors import InputError

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
#: Seconds since 1970 UTC, up to the last that a calendar date can be written for.
UnixTime = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799)]

MAX_STEPS = 64

_DOMAIN = b"overhaul rollout 1"
_SCALE_BITS = 53


class UnusableRolloutError(InputError):
    """A rollout that can never be meant."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The rollout cannot be used: {reason}.")


class RolloutStep(msgspec.Struct, frozen=True, kw_only=True):
    """From a time on, the release is open to this part of the devices."""

    since: UnixTime
    percent: Percent

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "percent", _checked(self.percent))


class Rollout(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A percentage, and the times at which it rises by itself.

    The times rise and the percentages never fall. A device whose clock is wrong is too early or too late by as
    much; that changes when it gets a release, never which.
    """

    #: Holds until the first step.
    percent: Percent
    steps: Annotated[tuple[RolloutStep, ...], msgspec.Meta(max_length=MAX_STEPS)] = ()
    #: Releases with the same seed reach the same devices first; empty means the release's own name.
    seed: Annotated[str, msgspec.Meta(max_length=128)] = ""
    #: What follows only informs; `policy.steering` keeps its place with it. When the percentage was set.
    since: UnixTime = 0
    #: The release is judged by the updates that were begun from then on.
    judged_from: UnixTime = 0
    #: Why the rollout was halted by what devices reported; empty while it goes on.
    halted: Annotated[str, msgspec.Meta(max_length=500)] = ""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "percent", _checked(self.percent))
        if len(self.steps) > MAX_STEPS:
            raise UnusableRolloutError(f"it has {len(self.steps)} steps, more than {MAX_STEPS}")
        percent, since = self.percent, -1
        for step in self.steps:
            if step.since <= since:
                raise UnusableRolloutError(f"its steps are not in the order of their times at {step.since}")
            if step.percent < percent:
                raise UnusableRolloutError(f"it falls from {percent:g} to {step.percent:g} percent at {step.since}")
            percent, since = step.percent, step.since

    def percent_at(self, now: int) -> float:
        """Return the percentage that holds at `now`."""
        return max((step.percent for step in self.steps if step.since <= now), default=self.percent)

    def opens_at(self, place: float) -> int | None:
        """Return the time of the first step that is open to a device at `place`; None when no step is."""
        return next((step.since for step in self.steps if admits(percent=step.percent, place=place)), None)

    def why_shut(self, now: int) -> str:
        """Return what a device that the release was open to, and is not at `now`, is told of its rollout."""
        if self.halted:
            return f"was halted: {self.halted}"
        percent = self.percent_at(now)
        if not percent and not self.steps:
            return "was paused"
        # An operator lowered it, or the device's clock went back.
        return f"is at {percent:g} % now, without this device"


def as_utc(seconds: int) -> str:
    """Return a Unix time as a person reads it."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def bucket(*, rollout_id: str, seed: str) -> float:
    """Return the device's place in [0, 1) for the release with this seed."""
    digest = hashlib.sha256(_DOMAIN)
    for part in (rollout_id.encode(), seed.encode()):
        digest.update(len(part).to_bytes(8, "big") + part)
    # A float holds 53 bits exactly, so the highest place stays below 1.
    return (int.from_bytes(digest.digest()[:8], "big") >> (64 - _SCALE_BITS)) / (1 << _SCALE_BITS)


def admits(*, percent: float, place: float) -> bool:
    """Return whether a release at `percent` is open to a device at `place`."""
    return place < percent / 100


def _checked(percent: float) -> float:
    if not 0 <= percent <= 100:
        raise UnusableRolloutError(f"{percent:g} percent is not between 0 and 100")
    return float(percent)
