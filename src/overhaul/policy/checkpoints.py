"""Checkpoints: releases that a device must have run before it may go on.

A checkpoint is passed by running it or anything newer. When it is recalled it may name another checkpoint that
stands in for it, which can be replaced in turn; the whole line then counts as one checkpoint: whoever has passed
one member has passed all, and the only live member, the last, is what the others below are sent to. The recalled
checkpoint keeps its place as a barrier, wherever its replacement stands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from overhaul.policy.document import PolicyEntry, VersionAndBuild
from overhaul.release.versions import ReleaseOrder, release_order_key

#: A recalled checkpoint, its replacement, the replacement's...: what is longer, or leads in a circle, counts as
#: having no live end, so that no document makes a device think for long.
MAX_LINE = 16


@dataclass(frozen=True)
class Candidate:
    """An entry and its place in the order."""

    entry: PolicyEntry
    order: ReleaseOrder

    @classmethod
    def of(cls, entry: PolicyEntry) -> "Candidate":
        """Return the candidate for `entry`."""
        return cls(entry=entry, order=entry.order)

    @property
    def identity(self) -> VersionAndBuild:
        """What names it among the releases of its variant and arch."""
        return self.entry.version, self.entry.build_id


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with everything that stands in for it; the last of the line is offered in its place."""

    candidate: Candidate
    line: tuple[Candidate, ...]

    def is_passed_at(self, running: ReleaseOrder) -> bool:
        """Whether a device that runs this release has passed the checkpoint."""
        return any(member.order <= running for member in self.line)

    def accepts(self, candidate: Candidate) -> bool:
        """Whether moving to `candidate` is a way to pass the checkpoint."""
        return any(member.order == candidate.order for member in self.line)

    @property
    def as_barrier(self) -> str:
        """The checkpoint and what it takes to pass it, as the end of a sentence."""
        name, last = self.candidate.entry.name, self.line[-1].entry
        if last.recall is not None:
            return f"checkpoint {name}, which was recalled and has no replacement"
        if len(self.line) > 1:
            return f"checkpoint {name}, for which the device must pass {last.name} first"
        return f"checkpoint {name}, which the device must pass first"


def checkpoints_among(candidates: Sequence[Candidate]) -> tuple[Checkpoint, ...]:
    """Return the checkpoints among the candidates of one variant and arch, the oldest first."""
    by_order = {candidate.order: candidate for candidate in candidates}
    return tuple(
        Checkpoint(by_order[order], tuple(_line(by_order[order], by_order)))
        for order in sorted(by_order)
        if by_order[order].entry.checkpoint
    )


def _line(candidate: Candidate, by_order: dict[ReleaseOrder, Candidate]) -> Iterator[Candidate]:
    """Yield a checkpoint, then what replaces it, then what replaces that; only checkpoints can stand in."""
    current: Candidate | None = candidate
    for _member in range(MAX_LINE):
        if current is None or not current.entry.checkpoint:
            return
        yield current
        recall = current.entry.recall
        current = by_order.get(release_order_key(*recall.replaced_by)) if recall and recall.replaced_by else None
