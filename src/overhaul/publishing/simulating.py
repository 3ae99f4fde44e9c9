"""What a replay needs of a repository: how many bytes a way takes, and a plan's stages as steps in time."""

from collections.abc import Iterable

import msgspec

from overhaul.policy.document import Policy, PolicyEntry, VersionAndBuild
from overhaul.policy.replay import Sizes
from overhaul.policy.rollout import Rollout, RolloutStep
from overhaul.policy.steering import RolloutPlan, is_steered
from overhaul.release.record import Release, ReleaseId

_HOUR_S = 3600


def sizes_of(releases: Iterable[Release], *, product: str) -> Sizes:
    """Return how many bytes devices fetch: a delta where there is one, else every pack, which is the most it takes."""
    by_id = {release.id: release for release in releases}

    def size(variant: str, arch: str, start: VersionAndBuild, goal: VersionAndBuild) -> int | None:
        wanted, source = (
            by_id.get(ReleaseId(product=product, variant=variant, arch=arch, version=version, build_id=build_id))
            for version, build_id in (goal, start)
        )
        if wanted is None:
            return None
        index = wanted.image.index.size
        if source is not None:
            for delta in wanted.image.deltas:
                if delta.source_index == source.image.index.sha256:
                    return index + delta.file.size
        return index + sum(pack.pack.size + pack.frames.size for pack in wanted.image.packs)

    return size


def as_planned(policy: Policy, plan: RolloutPlan, *, now: int) -> Policy:
    """Return `policy` with every rollout under way going through the stages of `plan`, one each time it may."""
    return msgspec.structs.replace(policy, entries=tuple(_as_planned(entry, plan, now) for entry in policy.entries))


def _as_planned(entry: PolicyEntry, plan: RolloutPlan, now: int) -> PolicyEntry:
    rollout = entry.rollout
    if rollout is None or not is_steered(entry) or rollout.halted or rollout.steps or rollout.percent == 0:
        return entry
    begin = max(now, rollout.since)
    later = [stage for stage in plan.stages if stage > rollout.percent]
    soak_s = max(1, round(plan.soak_hours * _HOUR_S))
    steps = tuple(RolloutStep(since=begin + soak_s * place, percent=stage) for place, stage in enumerate(later, 1))
    return msgspec.structs.replace(entry, rollout=Rollout(percent=rollout.percent, steps=steps, seed=rollout.seed))
