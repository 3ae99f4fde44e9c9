"""The query protocol out of Overhaul's own policies: each device is judged for itself, as far as it tells.

Static files hold only what is open to everybody. A query may carry hardware facts and a place from 0 to 99, so here a
release in a partial rollout or with a hardware rule is offered to those that meet it; who tells nothing waits.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from overhaul.dialects.atomupd.manifest import STABLE_BRANCH, canonical_arch
from overhaul.dialects.atomupd.own_pool import (
    CHECKPOINTS_NAME,
    Checkpoints,
    catalogue_of,
    published_releases,
    read_checkpoints,
)
from overhaul.dialects.atomupd.requirements import Requirement
from overhaul.dialects.atomupd.serve import ServedPool
from overhaul.dialects.atomupd.settings import AtomupdSettings
from overhaul.dialects.atomupd.versions import parse_build_id, parse_version
from overhaul.errors import InputError
from overhaul.policy.document import Policy, PolicyEntry
from overhaul.release.record import ReleaseId


class PolicySource:
    """A product's releases as a `PoolSource` of the query server."""

    def __init__(
        self,
        settings: AtomupdSettings,
        *,
        product: str,
        directory: Path,
        policies: Callable[[], Sequence[Policy]],
    ) -> None:
        """Serve what `policies` says; the most stable channel first. It is called twice a second and must be cheap."""
        self._settings = settings
        self._product = product
        self._images = directory / "images"
        self._policies = policies
        self._served: _State | None = None

    def has_changed(self) -> bool:
        """Whether a policy has another revision, or a checkpoint got its number."""
        return self._served != self._state(self._own_policies())

    def load(self) -> ServedPool:
        """Return what the policies hold."""
        policies = self._own_policies()
        state = self._state(policies)
        numbered = read_checkpoints(self._images / CHECKPOINTS_NAME)
        opened: dict[str, list[ReleaseId]] = {}
        recalled: list[ReleaseId] = []
        requirements: list[Requirement] = []
        for policy in policies:
            branch = self._settings.branches.get(policy.channel, policy.channel)
            listed = opened.setdefault(branch, [])
            for entry in policy.entries:
                release = entry.release_id(self._product)
                if entry.recall is not None:
                    recalled.append(release)
                elif entry.requires is None and _is_named(release) and not _waits_for_number(entry, policy, numbered):
                    listed.append(release)
                    requirements += _requirements(entry, release, branch)
        catalogue = catalogue_of(
            self._settings,
            numbered,
            branches=tuple(opened) or (STABLE_BRANCH,),
            opened=opened,
            recalled=recalled,
            published=[one for one in published_releases(self._images, self._product) if _is_named(one)],
        )
        self._served = state
        return ServedPool(catalogue=catalogue, requirements=tuple(requirements))

    def _own_policies(self) -> list[Policy]:
        return [policy for policy in self._policies() if policy.product == self._product]

    def _state(self, policies: Sequence[Policy]) -> "_State":
        try:
            numbered_ns = (self._images / CHECKPOINTS_NAME).stat().st_mtime_ns
        except OSError:
            numbered_ns = 0
        return tuple((policy.channel, policy.revision) for policy in policies), numbered_ns


#: The revision of each channel, and when a checkpoint last got its number.
_State = tuple[tuple[tuple[str, int], ...], int]


def _is_named(release: ReleaseId) -> bool:
    """Whether the names of a release mean something in this dialect."""
    try:
        parse_version(release.version)
        parse_build_id(release.build_id)
    except InputError:
        return False
    return True


def _waits_for_number(entry: PolicyEntry, policy: Policy, numbered: Checkpoints) -> bool:
    """Whether a checkpoint at or below `entry` has no number yet: devices would jump over it."""
    names = numbered.get(f"{entry.variant}/{entry.arch}", [])
    return any(
        other.checkpoint and other.order <= entry.order and (other.version, other.build_id) not in names
        for other in policy.entries_for(variant=entry.variant, arch=entry.arch)
    )


def _requirements(entry: PolicyEntry, release: ReleaseId, branch: str) -> list[Requirement]:
    if entry.rollout is None and entry.hardware is None:
        return []
    pattern = f"{parse_version(release.version).text}/{parse_build_id(release.build_id)}"
    return [
        Requirement(
            name=f"{branch} {entry.name}",
            images=(pattern,),
            branches=(branch,),
            variant=entry.variant,
            # Rules are held against images, which have the architecture's name of this system.
            arch=canonical_arch(entry.arch),
            hardware=entry.hardware,
            rollout=entry.rollout,
        )
    ]
