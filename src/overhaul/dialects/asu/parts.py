"""What the routes share: the queue, the store, the catalogue, and answers that need nothing of them any more."""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from overhaul.builds.queue import BuildQueue
from overhaul.builds.records import BuildRecord, BuildState
from overhaul.builds.store import ArtefactStore
from overhaul.dialects.asu.catalogue import CurrentCatalogue
from overhaul.dialects.asu.prepared import Ask, Prepared
from overhaul.dialects.asu.settings import AsuSettings

#: An answer is taken from memory for so long; then the queue is asked whether it still holds.
_REMEMBERED_S = 5.0
_REMEMBERED_ANSWERS = 2048
_REMEMBERED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Remembered:
    """An answer that needs no question to the queue."""

    answer: Prepared
    build_id: int
    #: What led to it, compared whole before it is given: never only a digest, and never only part of one.
    asked: object
    until: float


class Memory:
    """The answers of builds that are over, for a few seconds each, within a number and an amount."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._answers: OrderedDict[tuple[str, str], Remembered] = OrderedDict()
        self._bytes = 0
        #: Requests answered from memory, by build; told to the queue now and then.
        self.hits: Counter[int] = Counter()

    def get(self, interface: str, name: str, asked: object) -> Prepared | None:
        """Return the answer for `name`, if it is for exactly what is `asked` and still holds."""
        found = self._answers.get((interface, name))
        if found is None or found.asked != asked or not self._clock() < found.until:
            return None
        self.hits[found.build_id] += 1
        return found.answer

    def keep(self, interface: str, name: str, asked: object, build: BuildRecord, answer: Prepared) -> None:
        """Remember the answer of a build that is over."""
        now = self._clock()
        if not build.state.is_over or build.state is BuildState.CANCELLED or not build.answers(now):
            return
        until = now + _REMEMBERED_S if build.expires_at is None else min(now + _REMEMBERED_S, build.expires_at)
        self.drop(interface, name)
        self._answers[(interface, name)] = Remembered(answer, build.build_id, asked, until)
        self._bytes += len(answer.body)
        while len(self._answers) > _REMEMBERED_ANSWERS or self._bytes > _REMEMBERED_BYTES:
            self._bytes -= len(self._answers.popitem(last=False)[1].answer.body)

    def drop(self, interface: str, name: str) -> None:
        """Forget an answer."""
        found = self._answers.pop((interface, name), None)
        self._bytes -= 0 if found is None else len(found.answer.body)


class Parts:
    """The parts of one server."""

    def __init__(
        self,
        settings: AsuSettings,
        *,
        queue: BuildQueue,
        store: ArtefactStore,
        catalogue_directory: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.queue = queue
        self.store = store
        self.catalogue = CurrentCatalogue(catalogue_directory, settings)
        self.clock = clock
        self.memory = Memory(clock)
        self._lock = threading.Lock()

    def client_of(self, ask: Ask) -> str:
        """Return who is accounted for a request: an address."""
        if self.settings.trust_forwarded_for:
            forwarded = ask.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
            if forwarded:
                return forwarded[:64]
        return ask.address or "unknown"

    def tell_hits(self) -> None:
        """Tell the queue how often its builds answered from memory; blocks."""
        with self._lock:
            hits, self.memory.hits = self.memory.hits, Counter()
        for build_id, amount in hits.items():
            self.queue.count_requests(build_id, amount)
