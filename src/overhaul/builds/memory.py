"""A queue in this process's memory: for tests, and for a server that need not remember."""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import msgspec

from overhaul.builds.queue import (
    ClientLimitError,
    LogPart,
    LostLeaseError,
    QueueFullError,
    Submitted,
    UnknownBuildError,
)
from overhaul.builds.recipe import Recipe, same_recipe
from overhaul.builds.records import (
    BuildRecord,
    BuildState,
    Lease,
    Lifetimes,
    QueueLimits,
    ended,
    lost_failure,
    requeued,
)
from overhaul.builds.results import BuildFailure, BuildResult, Phase


@dataclass
class _Entry:
    record: BuildRecord
    turn: int
    token: str = ""
    lease_ends_at: float = 0.0
    log: list[str] = field(default_factory=list)
    log_size: int = 0


class MemoryQueue:
    """Builds in memory; every method holds one lock."""

    def __init__(
        self,
        *,
        limits: QueueLimits | None = None,
        lifetimes: Lifetimes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits = limits or QueueLimits()
        self._lifetimes = lifetimes or Lifetimes()
        self._clock = clock
        self._entries: dict[int, _Entry] = {}
        self._newest: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._turn = 0
        self._tokens = 0
        self._changed = threading.Condition(threading.RLock())

    def submit(
        self, recipe: Recipe, *, names: Sequence[str], client: str, client_label: str = "unknown/0"
    ) -> Submitted:
        """Return the build that answers a request for `recipe`."""
        with self._changed:
            key, now = recipe.key, self._clock()
            name = next(name for name in (*names, key) if self._names.get(name, key) == key)
            found = self.find_recipe(recipe)
            is_new = found is None or not found.answers(now)
            if found is None or is_new:
                build = self._add(recipe, key=key, name=name, client=client, client_label=client_label, now=now)
            else:
                build = self._change(found.build_id, requests=found.requests + 1)
            self._names[name] = key
            self._changed.notify_all()
            return Submitted(build=build, name=name, is_new=is_new)

    def find(self, build_id: int) -> BuildRecord:
        """Return a build by its number."""
        return self._entry(build_id).record

    def find_named(self, name: str) -> BuildRecord | None:
        """Return the newest build of the recipe that `name` stands for."""
        with self._changed:
            build_id = self._newest.get(self._names.get(name, ""))
            return None if build_id is None else self._entries[build_id].record

    def find_recipe(self, recipe: Recipe) -> BuildRecord | None:
        """Return the newest build of `recipe`."""
        with self._changed:
            build_id = self._newest.get(recipe.key)
            found = None if build_id is None else self._entries[build_id].record
            return found if found is not None and same_recipe(found.recipe, recipe) else None

    def bind(self, name: str, recipe_key: str) -> bool:
        """Let `name` stand for a recipe too."""
        with self._changed:
            return self._names.setdefault(name, recipe_key) == recipe_key

    def position(self, build_id: int) -> int:
        """Return how many builds come before a waiting one."""
        with self._changed:
            mine = self._entry(build_id)
            if mine.record.state is not BuildState.QUEUED:
                return 0
            return sum(_order(entry) < _order(mine) for entry in self._queued())

    def waiting(self) -> int:
        """Return how many builds wait."""
        with self._changed:
            return len(self._queued())

    def recent(self, *, limit: int, states: Collection[str] = (), since: float = 0.0) -> tuple[BuildRecord, ...]:
        """Return builds, the newest first."""
        with self._changed:
            records = (self._entries[number].record for number in sorted(self._entries, reverse=True))
            wanted = (one for one in records if (not states or one.state in states) and one.enqueued_at >= since)
            return tuple(record for record, _ in zip(wanted, range(limit), strict=False))

    def count_requests(self, build_id: int, amount: int) -> None:
        """Add `amount` to the requests that a build has answered."""
        with self._changed:
            self._change(build_id, requests=self.find(build_id).requests + amount)

    def cancel(self, build_id: int) -> BuildRecord:
        """End a waiting build; ask the worker of a running one to stop."""
        with self._changed:
            entry = self._entry(build_id)
            if entry.record.state is BuildState.QUEUED:
                entry.record = ended(entry.record, None, now=self._clock(), lifetimes=self._lifetimes)
            elif entry.record.state is BuildState.STARTED:
                self._change(build_id, cancel_requested=True)
            return entry.record

    def lease(self, *, worker: str, builders: Collection[str]) -> Lease | None:
        """Return the next build for `worker`."""
        with self._changed:
            now = self._clock()
            self._take_back(now)
            waiting = [entry for entry in self._queued() if entry.record.recipe.builder in builders]
            if not waiting:
                return None
            entry = min(waiting, key=_order)
            self._turn = max(self._turn, entry.turn)
            self._tokens += 1
            entry.token, entry.lease_ends_at = str(self._tokens), now + self._limits.lease_s
            entry.record = msgspec.structs.replace(
                entry.record,
                state=BuildState.STARTED,
                phase=Phase.INIT,
                started_at=now,
                attempts=entry.record.attempts + 1,
                worker=worker,
            )
            return Lease(build=entry.record, token=entry.token, worker=worker, ends_at=entry.lease_ends_at)

    def renew(self, lease: Lease, *, phase: Phase | None = None) -> Lease:
        """Move the end of `lease` on."""
        with self._changed:
            entry = self._held(lease)
            entry.lease_ends_at = self._clock() + self._limits.lease_s
            if phase is not None:
                entry.record = msgspec.structs.replace(entry.record, phase=phase)
            return Lease(build=entry.record, token=lease.token, worker=lease.worker, ends_at=entry.lease_ends_at)

    def finish(self, lease: Lease, end: BuildResult | BuildFailure) -> BuildRecord:
        """End the build."""
        with self._changed:
            entry = self._held(lease)
            entry.record = ended(entry.record, end, now=self._clock(), lifetimes=self._lifetimes)
            return entry.record

    def give_back(self, lease: Lease) -> None:
        """Let the build wait again."""
        with self._changed:
            entry = self._held(lease)
            entry.record = requeued(entry.record, attempts=entry.record.attempts - 1)
            self._changed.notify_all()

    def append_log(self, lease: Lease, text: str) -> None:
        """Add to the build's log."""
        with self._changed:
            entry = self._held(lease)
            taken = text[: max(0, self._limits.log_characters - entry.log_size)]
            entry.log.append(taken)
            entry.log_size += len(taken)

    def read_log(self, build_id: int, *, offset: int = 0) -> LogPart:
        """Return the log from `offset` characters on."""
        with self._changed:
            text = "".join(self._entry(build_id).log)
            return LogPart(text=text[offset:], next_offset=max(offset, len(text)))

    def forget_logs(self, *, before: float) -> int:
        """Remove logs of builds that were over before `before`."""
        with self._changed:
            old = [
                entry
                for entry in self._entries.values()
                if entry.log and entry.record.finished_at is not None and entry.record.finished_at < before
            ]
            for entry in old:
                entry.log.clear()
            return len(old)

    def expire(self, build_id: int) -> None:
        """Let the end of a build answer no more requests."""
        with self._changed:
            if self.find(build_id).state.is_over:
                self._change(build_id, expires_at=0.0)

    def wait(self, timeout_s: float) -> None:
        """Return when something may have been submitted, or after `timeout_s`."""
        with self._changed:
            if not self._queued():
                self._changed.wait(timeout_s)

    def _add(self, recipe: Recipe, *, key: str, name: str, client: str, client_label: str, now: float) -> BuildRecord:
        waiting = self._queued()
        mine = [entry for entry in waiting if entry.record.client == client]
        if len(waiting) >= self._limits.waiting:
            raise QueueFullError(waiting=len(waiting), limit=self._limits.waiting)
        if len(mine) >= self._limits.waiting_of_client:
            raise ClientLimitError(client=client, waiting=len(mine), limit=self._limits.waiting_of_client)
        turn = max([self._turn, *(entry.turn + 1 for entry in mine)])
        record = BuildRecord(
            build_id=len(self._entries) + 1,
            recipe=recipe,
            recipe_key=key,
            name=name,
            client=client,
            client_label=client_label,
            state=BuildState.QUEUED,
            phase=Phase.INIT,
            enqueued_at=now,
        )
        self._entries[record.build_id] = _Entry(record=record, turn=turn)
        self._newest[key] = record.build_id
        return record

    def _take_back(self, now: float) -> None:
        for entry in self._entries.values():
            if entry.record.state is BuildState.STARTED and entry.lease_ends_at <= now:
                attempts = entry.record.attempts
                if entry.record.cancel_requested:
                    entry.record = ended(entry.record, None, now=now, lifetimes=self._lifetimes)
                elif attempts >= self._limits.attempts:
                    entry.record = ended(entry.record, lost_failure(attempts), now=now, lifetimes=self._lifetimes)
                else:
                    entry.record = requeued(entry.record, attempts=attempts)

    def _queued(self) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.record.state is BuildState.QUEUED]

    def _held(self, lease: Lease) -> _Entry:
        entry = self._entry(lease.build.build_id)
        is_held = entry.record.state is BuildState.STARTED and entry.token == lease.token
        if not is_held or entry.lease_ends_at <= self._clock():
            raise LostLeaseError(build_id=lease.build.build_id)
        return entry

    def _entry(self, build_id: int) -> _Entry:
        if build_id not in self._entries:
            raise UnknownBuildError(build_id=build_id)
        return self._entries[build_id]

    def _change(self, build_id: int, **changes: object) -> BuildRecord:
        entry = self._entry(build_id)
        entry.record = msgspec.structs.replace(entry.record, **changes)
        return entry.record


def _order(entry: _Entry) -> tuple[int, int]:
    return entry.turn, entry.record.build_id
