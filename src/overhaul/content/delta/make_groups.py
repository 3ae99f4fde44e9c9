"""Making the groups of a delta: planned, told, packed, and carried out once before they are kept."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from overhaul.content.delta.bytesource import ImageBytes
from overhaul.content.delta.grouping import GroupPlan, GroupPlanner, PackedFile
from overhaul.content.delta.groups import Group
from overhaul.content.delta.kinds import PACKED_KIND
from overhaul.content.delta.packing import Job, Nowhere, PackedSegment, UnfaithfulSegmentError, pack_all
from overhaul.content.delta.pieces import pieces_of_whole_file
from overhaul.content.delta.rebuilding import JoinedSpace, Outcome, WorkArea, rebuild
from overhaul.content.delta.recoders import packing_memory
from overhaul.content.delta.segments import Segment
from overhaul.progress import Progress
from overhaul.release.record import RebuildRef

#: Unpacking, moving and packing again, besides what a recoder takes.
_BUFFERS_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class MadeGroup:
    """A group with the bytes of its segments."""

    #: The file offsets of its segments are not known yet.
    group: Group
    files: tuple[PackedFile, ...]
    packed: tuple[PackedSegment, ...]
    instead: tuple[PackedSegment, ...]

    @property
    def ref(self) -> RebuildRef:
        """What the release record says of it."""
        memory = (packing_memory(one.coder.partition(".")[0], one.plain.size) for one in self.group.packings)
        return RebuildRef(
            recoders=tuple(sorted(self.group.recoders)),
            size=self.group.size,
            instead_size=self.group.instead_size,
            work_size=self.group.work_size,
            memory=_BUFFERS_BYTES + max(memory),
        )


def make_groups(
    shared: Iterable[Sequence[PackedFile]],
    planner: GroupPlanner,
    old: ImageBytes,
    new: ImageBytes,
    *,
    directory: Path,
    workers: int,
    progress: Progress,
) -> Iterator[MadeGroup]:
    """Yield the group of each of the `shared` file lists; work areas are made in `directory`.

    Raises:
        UnfaithfulSegmentError: A group does not give back what it was made of.
    """
    for files in shared:
        yield _make_group(planner.plan(files), old, new, directory=directory, workers=workers, progress=progress)


def _make_group(
    plan: GroupPlan, old: ImageBytes, new: ImageBytes, *, directory: Path, workers: int, progress: Progress
) -> MadeGroup:
    with WorkArea(directory, plan.work_size) as work:
        for offset, plain in plan.old_plain:
            work.write(offset, plain)
        joined = JoinedSpace(old, old.size, work, new)
        jobs = [Job(kind, b"", piece, made) for kind, piece, made in plan.pieces]
        jobs.sort(key=lambda job: job.kind)
        packed = tuple(pack_all(jobs, joined, joined, workers=workers, progress=progress))
    instead = tuple(
        pack_all(
            [
                Job(PACKED_KIND, file.pair.new.path, piece)
                for file in plan.files
                for piece in pieces_of_whole_file(file.pair)
            ],
            old,
            new,
            workers=workers,
            progress=progress,
        )
    )
    digest = hashlib.sha256()
    for write in plan.writes:
        digest.update(new.read(write.target, write.size))
    group = Group(
        work_size=plan.work_size,
        unpackings=tuple(plan.unpackings),
        moves=tuple(plan.moves),
        segments=_placed(packed),
        packings=tuple(plan.packings),
        writes=tuple(plan.writes),
        sha256=digest.digest(),
        instead=_placed(instead),
    )
    outcome = rebuild(
        group,
        [segment.payload for segment in packed],
        source=old,
        source_size=old.size,
        target=new,
        into=Nowhere(),
        directory=directory,
    )
    if outcome is not Outcome.WRITTEN:
        raise UnfaithfulSegmentError
    return MadeGroup(group, plan.files, packed, instead)


def _placed(packed: Iterable[PackedSegment]) -> tuple[Segment, ...]:
    return tuple(one.segment for one in packed)
