"""One execution of a recipe, as everybody sees it: its state, its times, its end.

```
            lease                 finish
queued ───────────────► started ───────────► finished | failed | cancelled
  ▲                        │
  └── lease ended ─────────┘        (at most `attempts` times; then failed, because the worker dies of it)
```

The functions here are the decisions that every queue takes alike; they see values and a time and change nothing.
"""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from overhaul.builds.recipe import Recipe
from overhaul.builds.results import BuildFailure, BuildResult, FailureKind, Phase

_HOUR_S = 3600.0
_DAY_S = 24 * _HOUR_S


class BuildState(StrEnum):
    """Where a build stands in the queue."""

    QUEUED = "queued"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen to the build any more."""
        return self not in {BuildState.QUEUED, BuildState.STARTED}


class BuildRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of a recipe. Times are seconds since 1970 UTC."""

    build_id: int
    recipe: Recipe
    recipe_key: str
    #: The name it was first asked for by; also that of its artefact's directory.
    name: str
    #: Who is accounted for it: an address or an account.
    client: str
    #: The program that asked, such as `owut/1.3`.
    client_label: str
    state: BuildState
    phase: Phase
    enqueued_at: float
    started_at: float | None = None
    finished_at: float | None = None
    #: Until when its end is an answer to the same request; None while it is not over.
    expires_at: float | None = None
    #: How often a worker has begun it.
    attempts: int = 0
    worker: str | None = None
    cancel_requested: bool = False
    #: How many requests it has answered.
    requests: int = 1
    result: BuildResult | None = None
    failure: BuildFailure | None = None

    def answers(self, now: float) -> bool:
        """Tell whether the same request at `now` is answered by this build, waiting or over."""
        if self.state is BuildState.CANCELLED:
            return False
        return not self.state.is_over or self.expires_at is None or now < self.expires_at


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A worker's right to run a build until `ends_at`, unless it renews it."""

    build: BuildRecord
    token: str
    worker: str
    ends_at: float


@dataclass(frozen=True, kw_only=True)
class Lifetimes:
    """How long the end of a build answers the same request, in seconds."""

    #: With a first-boot script: it may hold secrets.
    with_defaults_s: float = _HOUR_S / 2
    #: With all versions of packages fixed.
    with_versions_s: float = 7 * _DAY_S
    #: With whatever versions there were that day.
    other_s: float = _DAY_S
    failure_s: float = _HOUR_S

    def of(self, recipe: Recipe, *, failed: bool) -> float:
        """Return the seconds for which the end of a build of `recipe` is an answer."""
        if failed:
            return self.failure_s
        if recipe.defaults:
            return self.with_defaults_s
        return self.with_versions_s if recipe.package_versions else self.other_s


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """What a queue accepts and how long it trusts a worker."""

    #: Builds that wait, in all and of one client.
    waiting: int = 200
    waiting_of_client: int = 20
    #: A worker that did not renew its lease for so long is taken for dead.
    lease_s: float = 60.0
    #: A build whose workers died so often is failed.
    attempts: int = 3
    #: Characters of the live log that are kept for one build.
    log_characters: int = 4 << 20


def ended(
    build: BuildRecord, end: BuildResult | BuildFailure | None, *, now: float, lifetimes: Lifetimes
) -> BuildRecord:
    """Return `build` as it is over: by `end`, or cancelled when that is None or says so."""
    if isinstance(end, BuildResult):
        state, phase = BuildState.FINISHED, Phase.DONE
    elif end is None or end.kind is FailureKind.CANCELLED:
        state, phase = BuildState.CANCELLED, Phase.FAILED
    else:
        state, phase = BuildState.FAILED, Phase.FAILED
    return msgspec.structs.replace(
        build,
        state=state,
        phase=phase,
        finished_at=now,
        expires_at=now + lifetimes.of(build.recipe, failed=state is not BuildState.FINISHED),
        result=end if isinstance(end, BuildResult) else None,
        failure=end if isinstance(end, BuildFailure) else _cancelled(end),
    )


def requeued(build: BuildRecord, *, attempts: int) -> BuildRecord:
    """Return `build` as it waits again after a worker that did not end it."""
    return msgspec.structs.replace(
        build, state=BuildState.QUEUED, phase=Phase.INIT, started_at=None, worker=None, attempts=attempts
    )


def lost_failure(attempts: int) -> BuildFailure:
    """Return the failure of a build that took all its workers with it."""
    return BuildFailure(
        kind=FailureKind.WORKER_LOST, detail=f"The worker died {attempts} times in the middle of this build"
    )


def _cancelled(end: BuildResult | None) -> BuildFailure | None:
    return None if end is not None else BuildFailure(kind=FailureKind.CANCELLED, detail="The build was cancelled")
