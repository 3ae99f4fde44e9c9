"""A mirror whose files do not verify is left for the next one.

The fetcher goes on to another mirror when one is broken; that a file is not the signed one shows only where it is
verified. Everything is verified whichever mirror it came from, and an assembly goes on where it was, so trying the
same again elsewhere is safe and costs little. What a verified answer says is the answer of all mirrors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from overhaul.agent.ports import Repository, Shipped
from overhaul.errors import TrustError
from overhaul.release.configuration import Configuration
from overhaul.trust.refusals import BuildsRefusedError, UnknownTargetError

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Mirrors:
    """The mirrors of a repository, one of which is preferred."""

    count: int
    #: Prefers the next one.
    turn: Callable[[], None]

    def any(self, work: Callable[[], _Result]) -> _Result:
        """Return what `work` returns, tried with each of the mirrors until one brings what verifies.

        Raises:
            TrustError: None did; what is raised is of the last one.
        """
        for _mirror in range(self.count - 1):
            try:
                return work()
            except (BuildsRefusedError, UnknownTargetError):
                raise
            except TrustError:
                self.turn()
        return work()


class MirroredShipped:
    """What a release ships, of which each part is tried with every mirror."""

    def __init__(self, open_shipped: Callable[[], Shipped], mirrors: Mirrors) -> None:
        self._mirrors = mirrors
        self._shipped = mirrors.any(open_shipped)

    @property
    def configuration(self) -> Configuration:
        """Every object."""
        return self._shipped.configuration

    def content(self, sha256: bytes) -> bytes | None:
        """Return the content with this digest, or None when it is not published by itself."""
        return self._mirrors.any(lambda: self._shipped.content(sha256))


class MirroredRepository:
    """A repository whose steps are each tried with every mirror."""

    def __init__(self, repository: Repository, mirrors: Mirrors) -> None:
        self._repository = repository
        self._mirrors = mirrors

    @property
    def time_floor(self) -> datetime:
        """The earliest time it can be, as learned from verified metadata."""
        return self._repository.time_floor

    def poll(self) -> bool:
        """Ask once whether there is something new."""
        return self._mirrors.any(self._repository.poll)

    def refresh(self) -> None:
        """Bring the trusted metadata up to date."""
        self._mirrors.any(self._repository.refresh)

    def read_target(self, path: str) -> bytes:
        """Return the verified bytes of a target."""
        return self._mirrors.any(lambda: self._repository.read_target(path))

    def signers_of(self, path: str) -> tuple[str, ...]:
        """Return the ids of the keys whose signature counts for a target."""
        return self._repository.signers_of(path)
