"""How long work tells a person about itself: one tiny seam, silent unless someone listens."""

from typing import Protocol


class Progress(Protocol):
    """Receives what a running step has done so far."""

    def begin(self, step: str, total: int | None, unit: str = "bytes") -> None:
        """Start the step named `step`; `total` units are expected, or None when unknown."""

    def advance(self, amount: int) -> None:
        """Add `amount` units to the current step."""

    def end(self) -> None:
        """Finish the current step."""


class Silence:
    """The progress nobody listens to."""

    def begin(self, step: str, total: int | None, unit: str = "bytes") -> None:
        """Do nothing."""

    def advance(self, amount: int) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""
