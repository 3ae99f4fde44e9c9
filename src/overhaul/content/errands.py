"""Work that several neighbours share: each takes the next piece that it does not lack; what one fails at others may do.

Everybody who asks for an errand either gets one, waits for what others may still fail at, or learns that nothing is
left for it to do.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from threading import Condition
from typing import Generic, TypeVar

Errand = TypeVar("Errand")


class Outcome(Enum):
    """What became of an errand."""

    DONE = auto()
    #: Whoever took it does not have what it is about, and goes on with others.
    LACKING = auto()
    #: Others, or the same one later, may do it.
    LEFT = auto()


@dataclass(eq=False)
class _Waiting(Generic[Errand]):
    errand: Errand
    lacking: set[Hashable] = field(default_factory=set)


class Errands(Generic[Errand]):
    """A list of errands, for several threads."""

    def __init__(self, errands: Iterable[Errand]) -> None:
        self._waiting = [_Waiting(errand) for errand in errands]
        self._under_way: dict[Hashable, _Waiting[Errand]] = {}
        self._changed = Condition()

    def next(self, taker: Hashable) -> Errand | None:
        """Return an errand, waiting while others may still leave theirs; None when nothing is left for `taker`."""
        with self._changed:
            while True:
                found = next((one for one in self._waiting if taker not in one.lacking), None)
                if found is not None:
                    self._waiting.remove(found)
                    self._under_way[taker] = found
                    return found.errand
                if not self._under_way:
                    return None
                self._changed.wait()

    def end(self, taker: Hashable, outcome: Outcome) -> None:
        """Say what became of the errand that `taker` has."""
        with self._changed:
            taken = self._under_way.pop(taker)
            if outcome is Outcome.LACKING:
                taken.lacking.add(taker)
            if outcome is not Outcome.DONE:
                self._waiting.append(taken)
            self._changed.notify_all()

    @property
    def left(self) -> Sequence[Errand]:
        """Errands that nobody did."""
        return [one.errand for one in self._waiting]
