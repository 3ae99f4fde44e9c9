"""Progress bars for terminals, drawn by rich."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class Bars:
    """Draws one bar a step; a finished step's bar stays on the screen. Use as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._drawing: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def begin(self, step: str, total: int | None, unit: str = "bytes") -> None:
        """Start a bar for `step`."""
        self.end()
        amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        self._drawing = Progress(
            TextColumn("{task.description:<28}"), BarColumn(), amount, TimeRemainingColumn(), console=self._console
        )
        self._drawing.start()
        self._task = self._drawing.add_task(step, total=total)

    def advance(self, amount: int) -> None:
        """Move the current bar on."""
        if self._drawing is not None and self._task is not None:
            self._drawing.advance(self._task, amount)

    def end(self) -> None:
        """Leave the current bar as it is."""
        if self._drawing is not None:
            self._drawing.stop()
            self._drawing = None
            self._task = None
