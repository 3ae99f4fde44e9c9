"""What is asked of neighbours, of whom, and what becomes of those that fail; the neighbours are stand-ins."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import pytest

from overhaul.content.neighbours import MAX_NEIGHBOURS, Neighbourhood, Piece
from overhaul.errors import NetworkError
from overhaul.transfer.neighbour import NeighbourBusyError, NeighbourFailedError

DATA = [bytes([number]) * 100 for number in range(20)]
PIECES = [Piece(hashlib.sha256(data).hexdigest(), len(data)) for data in DATA]
INDEX = "0" * 64


def honest(piece: Piece) -> bytes | None:
    return DATA[PIECES.index(piece)]


@dataclass
class Known:
    """A neighbour that answers by a function."""

    answer: Callable[[Piece], bytes | None] = honest
    has: bool = True
    address: str = "192.168.7.7:7373"
    asked: list[Piece] = field(default_factory=list)

    def __enter__(self) -> "Known":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def has_image(self, index_sha256: str) -> bool:
        assert index_sha256 == INDEX
        return self.has

    def chunks(self, index_sha256: str, *, first: int, last: int, size: int) -> bytes | None:
        raise AssertionError((index_sha256, first, last, size))

    def piece(self, sha256: str, *, size: int) -> bytes | None:
        piece = Piece(sha256, size)
        self.asked.append(piece)
        return self.answer(piece)


def _raise(error: NetworkError) -> bytes:
    raise error


FAILED = NeighbourFailedError(address="192.168.7.7:7373", reason="it broke off")


def _ask(*neighbours: Known) -> tuple[Neighbourhood, dict[Piece, bytes], list[Piece], list[float]]:
    waited: list[float] = []
    kept: dict[Piece, bytes] = {}
    with Neighbourhood(find=lambda: neighbours, wait=waited.append) as neighbourhood:
        left = neighbourhood.pieces(PIECES, kept.__setitem__, index_sha256=INDEX)
    return neighbourhood, kept, list(left), waited


@pytest.mark.parametrize(
    "bad",
    [lambda _piece: b"x" * 100, lambda _piece: _raise(FAILED), lambda _piece: None],
    ids=["lies", "fails", "lacks all"],
)
def test_a_good_neighbour_behind_many_bad_ones_gives_everything(bad: Callable[[Piece], bytes | None]) -> None:
    strangers = [Known(bad) for _number in range(3 * MAX_NEIGHBOURS)]

    neighbourhood, kept, left, _waited = _ask(*strangers, Known())

    assert list(kept.values()) == [honest(piece) for piece in kept]
    assert (len(kept), left) == (len(PIECES), [])
    assert neighbourhood.received_bytes == sum(map(len, DATA))


def test_whoever_lies_or_fails_is_not_asked_again() -> None:
    liar, broken = Known(lambda _piece: b"x" * 100), Known(lambda _piece: _raise(FAILED))

    neighbourhood, kept, left, _waited = _ask(liar, broken)

    assert (len(liar.asked), len(broken.asked), len(neighbourhood.refused)) == (1, 1, 2)
    assert (kept, len(left)) == ({}, len(PIECES))


def test_whoever_does_not_say_that_it_has_the_image_is_not_asked_for_parts() -> None:
    without = Known(has=False)

    _neighbourhood, kept, _left, _waited = _ask(without, Known())

    assert (without.asked, len(kept)) == ([], len(PIECES))


def test_whoever_is_put_off_waits_as_long_as_it_is_told_and_asks_again() -> None:
    answers = iter(
        [NeighbourBusyError(address="a", retry_after_s=3), None, NeighbourBusyError(address="a", retry_after_s=2)]
    )

    def busy(piece: Piece) -> bytes | None:
        error = next(answers, None)
        return honest(piece) if error is None else _raise(error)

    _neighbourhood, kept, left, waited = _ask(Known(busy))

    assert waited == [3, 2]
    assert (len(kept), left) == (len(PIECES), [])


def test_whoever_is_only_ever_put_off_is_given_up() -> None:
    busy = Known(lambda _piece: _raise(NeighbourBusyError(address="a", retry_after_s=5)))

    neighbourhood, kept, left, waited = _ask(busy)

    assert (kept, len(left)) == ({}, len(PIECES))
    assert 30 <= sum(waited) <= 35
    assert not neighbourhood.refused
