"""Whether a release harms devices: Wald's sequential probability ratio test over how updates ended.

Two shares are compared: an `acceptable` one of updates that come to nothing for reasons of their own (a device
switched off, a battery), and a `harmful` one that a release must not have. Each ended update moves a score,

    a failure      + log(harmful / acceptable)
    a success      + log((1 - harmful) / (1 - acceptable)), which is negative

and the release is harmful once the score is at least log((1 - missed) / false_alarm), healthy once it is at most
log(missed / (1 - false_alarm)), and undecided between. The test may be looked at as often as one likes: a release
with the acceptable share is ever called harmful with a probability of at most about `false_alarm`, one with the
harmful share called healthy with at most `missed` (A. Wald, Sequential Analysis, 1947).

Successes are told within minutes, but that a device did not come back is known only after a time of grace. Judged
naively a release would look healthy in between. So only successes of updates that are older than the grace speak
for a release, while all of them are weighed against a halt.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import msgspec

#: Of the normal distribution: 95 % lie within so many standard deviations.
_Z95 = 1.959963984540054


class Health(StrEnum):
    """What can be said of a release."""

    HEALTHY = "healthy"
    UNDECIDED = "undecided"
    HARMFUL = "harmful"


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """How the updates to one release ended, as far as devices reported them."""

    #: Confirmed by the device that runs it.
    confirmed: int = 0
    #: Of them, those whose update is so old that its like would count as lost by now.
    confirmed_and_settled: int = 0
    #: Gave it up: unhealthy, or the boot loader went back.
    rolled_back: int = 0
    #: Went down to restart, or waited for it, and were not heard of since.
    lost: int = 0
    #: Still within their time of grace.
    open: int = 0
    #: Could not be installed; what ran before runs on, so these say nothing about the release.
    not_installed: int = 0

    @property
    def failures(self) -> int:
        """Updates that ended badly."""
        return self.rolled_back + self.lost

    @property
    def ended(self) -> int:
        """Updates whose end is known."""
        return self.confirmed + self.failures

    @property
    def exposed(self) -> int:
        """Updates that were begun and not broken off."""
        return self.ended + self.open


@dataclass(frozen=True, kw_only=True)
class SequentialTest:
    """The test with its two shares and its two errors, all as parts of one."""

    acceptable: float
    harmful: float
    false_alarm: float
    missed: float

    def judge(self, evidence: Evidence) -> Health:
        """Return what `evidence` says."""
        if self.score(successes=evidence.confirmed, failures=evidence.failures) >= self.harmful_from:
            return Health.HARMFUL
        if self.score(successes=evidence.confirmed_and_settled, failures=evidence.failures) <= self.healthy_to:
            return Health.HEALTHY
        return Health.UNDECIDED

    def score(self, *, successes: int, failures: int) -> float:
        """Return the logarithm of the likelihood ratio of harmful to acceptable."""
        return failures * math.log(self.harmful / self.acceptable) + successes * math.log(
            (1 - self.harmful) / (1 - self.acceptable)
        )

    @property
    def harmful_from(self) -> float:
        """The score from which a release is harmful."""
        return math.log((1 - self.missed) / self.false_alarm)

    @property
    def healthy_to(self) -> float:
        """The score down to which a release is healthy."""
        return math.log(self.missed / (1 - self.false_alarm))

    def successes_wanted(self, evidence: Evidence) -> int:
        """Return how many more settled successes, without a failure between, would call the release healthy."""
        score = self.score(successes=evidence.confirmed_and_settled, failures=evidence.failures)
        step = math.log((1 - self.harmful) / (1 - self.acceptable))
        return max(0, math.ceil((self.healthy_to - score) / step))


def share_bounds(*, failures: int, ended: int) -> tuple[float, float]:
    """Return the 95 % bounds of the share of failures (E. B. Wilson, 1927), for people; nothing is decided by them."""
    if ended == 0:
        return 0.0, 1.0
    share, spread = failures / ended, _Z95**2 / ended
    middle = (share + spread / 2) / (1 + spread)
    reach = _Z95 * math.sqrt(share * (1 - share) / ended + spread / (4 * ended)) / (1 + spread)
    return max(0.0, middle - reach), min(1.0, middle + reach)
