"""The queue seam: who waits for an image, who builds it, and how it ended.

What every implementation promises, and `tests/behaviour/test_asu_build_queues.py` asks of each:

* `submit` returns the build that answers the request: one that waits or runs for the same recipe, one whose end is
  still fresh, or a new one. Two submits at the same moment never make two.
* Whose turn it is goes round the clients, so one client with many requests delays the others by one build each.
* A lease is held by one worker. It ends by `finish`, by `give_back`, or when it is not renewed in time; then the
  build waits again, ahead of those that came later. A worker whose lease has ended can neither finish nor log.
* Records are kept: nothing but `forget_logs` takes anything away.
* Every call is one transaction. What `submit` returned survives the death of every process.

Methods block; servers call them from a thread.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from overhaul.builds.recipe import Recipe
from overhaul.builds.records import BuildRecord, Lease
from overhaul.builds.results import BuildFailure, BuildResult, Phase
from overhaul.errors import BusyError, InputError


class QueueFullError(BusyError):
    """More builds wait than the queue takes; try again later."""

    http_status = 503

    def __init__(self, *, waiting: int, limit: int) -> None:
        self.waiting = waiting
        self.limit = limit
        super().__init__(f"{waiting} builds wait already and the queue takes {limit}; ask again in a few minutes.")


class ClientLimitError(BusyError):
    """One client has more builds waiting than it may."""

    http_status = 503

    def __init__(self, *, client: str, waiting: int, limit: int) -> None:
        self.client = client
        self.waiting = waiting
        self.limit = limit
        super().__init__(
            f"{waiting} builds of {client} wait already and a client may have {limit}; ask again when one is done."
        )


class UnknownBuildError(InputError):
    """No build has this number."""

    http_status = 404

    def __init__(self, *, build_id: int) -> None:
        self.build_id = build_id
        super().__init__(f"There is no build {build_id}; `overhaul builds queue list` names those that are known.")


class LostLeaseError(BusyError):
    """The lease has ended: the build is somebody else's, or over. Stop working on it."""

    def __init__(self, *, build_id: int) -> None:
        self.build_id = build_id
        super().__init__(f"The lease of build {build_id} has ended; another worker may be building it.")


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """How a request was taken in."""

    build: BuildRecord
    #: What the client asks for it by from now on.
    name: str
    #: Whether a build was begun for it; otherwise an equal one was there.
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class LogPart:
    """A piece of a build's log."""

    text: str
    #: Where the next piece begins.
    next_offset: int


class BuildQueue(Protocol):
    """Anything that keeps builds in order."""

    def submit(
        self, recipe: Recipe, *, names: Sequence[str], client: str, client_label: str = "unknown/0"
    ) -> Submitted:
        """Return the build that answers a request for `recipe`.

        `names` are what the client would like to call it, best first; the first that does not stand for another
        recipe is taken, and the recipe's key when all do.

        Raises:
            QueueFullError: It would have to wait behind too many.
            ClientLimitError: Too many of its client wait.
        """

    def find(self, build_id: int) -> BuildRecord:
        """Return a build by its number; raise `UnknownBuildError` for none."""

    def find_named(self, name: str) -> BuildRecord | None:
        """Return the newest build of the recipe that `name` stands for."""

    def find_recipe(self, recipe: Recipe) -> BuildRecord | None:
        """Return the newest build of `recipe`, compared by all its bytes."""

    def bind(self, name: str, recipe_key: str) -> bool:
        """Let `name` stand for a recipe too; return False when it stands for another."""

    def position(self, build_id: int) -> int:
        """Return how many builds come before a waiting one; 0 for the next and for one that waits no more."""

    def waiting(self) -> int:
        """Return how many builds wait."""

    def recent(self, *, limit: int, states: Collection[str] = (), since: float = 0.0) -> tuple[BuildRecord, ...]:
        """Return builds, the newest first, of the given states (all when none is given)."""

    def count_requests(self, build_id: int, amount: int) -> None:
        """Add `amount` to the requests that a build has answered."""

    def cancel(self, build_id: int) -> BuildRecord:
        """End a waiting build; ask the worker of a running one to stop. One that is over stays as it is."""

    def lease(self, *, worker: str, builders: Collection[str]) -> Lease | None:
        """Return the next build for `worker`, which has these builders, or None when none waits."""

    def renew(self, lease: Lease, *, phase: Phase | None = None) -> Lease:
        """Move the end of `lease` on, and tell where the build is; read `build.cancel_requested` of the answer.

        Raises:
            LostLeaseError: It has ended.
        """

    def finish(self, lease: Lease, end: BuildResult | BuildFailure) -> BuildRecord:
        """End the build; a failure of kind `cancelled` makes it cancelled. Raises `LostLeaseError`."""

    def give_back(self, lease: Lease) -> None:
        """Let the build wait again, as if it had never begun. Raises `LostLeaseError`."""

    def append_log(self, lease: Lease, text: str) -> None:
        """Add to the build's log, up to the limit; what is beyond it is dropped. Raises `LostLeaseError`."""

    def read_log(self, build_id: int, *, offset: int = 0) -> LogPart:
        """Return the log from `offset` characters on."""

    def forget_logs(self, *, before: float) -> int:
        """Remove logs of builds that were over before `before`; return how many."""

    def expire(self, build_id: int) -> None:
        """Let the end of a build answer no more requests, because its artefact is gone."""

    def wait(self, timeout_s: float) -> None:
        """Return when something may have been submitted, or after `timeout_s`."""
