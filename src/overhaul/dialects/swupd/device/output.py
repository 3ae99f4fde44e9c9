"""How the client speaks: sentences for people, stable lines for scripts, a JSON array for programs.

* `say` is for people, `note` only for `--verbose`, `tell` is what `--quiet` keeps and declares stable.
* `warn` and `fail` go to standard error.
* With `--json-output` standard output is one array, an object a line, and nothing else.

Progress is a bar on a terminal, objects in JSON, and silent otherwise.
"""

import os
import sys
from typing import TextIO

_WIDTH = 28


class Output:
    """One run's voice; it is also its progress."""

    def __init__(
        self,
        *,
        is_quiet: bool = False,
        is_verbose: bool = False,
        is_json: bool = False,
        shows_progress: bool = True,
        stream: TextIO | None = None,
        errors: TextIO | None = None,
    ) -> None:
        self.is_quiet = is_quiet
        self.is_verbose = is_verbose
        self.is_json = is_json
        self._stream = stream or sys.stdout
        self._errors = errors or sys.stderr
        self._draws = shows_progress and not is_quiet and not is_json and self._errors.isatty()
        self._counts = shows_progress and is_json
        self._section = ""
        self._step = 0
        self._steps = 0
        self._name = ""
        self._total: int | None = None
        self._done = 0
        self._shown = -1

    def open(self, section: str) -> None:
        """Begin a command."""
        self._section = section
        if self.is_json:
            self._line("[")
            self._object(f'"type" : "start", "section" : {_quoted(section)}', more=True)

    def close(self, status: int) -> None:
        """End the command with its exit code."""
        self.end()
        if self.is_json:
            self._object(f'"type" : "end", "section" : {_quoted(self._section)}, "status" : {status}', more=False)
            self._line("]")
        self._stream.flush()

    def say(self, text: str = "") -> None:
        """Tell a person; `--quiet` swallows it."""
        if self.is_json:
            if text.strip():
                self._object(f'"type" : "info", "msg" : {_quoted(text)}', more=True)
        elif not self.is_quiet:
            self._line(text)

    def note(self, text: str) -> None:
        """Tell who asked for details."""
        if self.is_verbose:
            self.say(text)

    def tell(self, text: str, *, human: str | None = None) -> None:
        """Print a stable line under `--quiet`, and `human` (or the same) otherwise."""
        if self.is_quiet and not self.is_json:
            self._line(text)
        else:
            self.say(text if human is None else human)

    def warn(self, text: str) -> None:
        """Warn; goes to standard error."""
        if self.is_json:
            self._object(f'"type" : "warning", "msg" : {_quoted(text)}', more=True)
        elif not self.is_quiet:
            self._clear()
            print(f"Warning: {text}", file=self._errors)

    def fail(self, text: str) -> None:
        """Tell of an error; goes to standard error, quiet or not."""
        if self.is_json:
            self._object(f'"type" : "error", "msg" : {_quoted(text)}', more=True)
        else:
            self._clear()
            print(f"Error: {text}", file=self._errors)

    def plan_steps(self, count: int) -> None:
        """Say how many steps the command has; `begin` starts the next one."""
        self._steps = count
        self._step = 0

    def begin(self, step: str, total: int | None, unit: str = "bytes") -> None:  # noqa: ARG002 - a bar has no unit
        """Start a step of `total` units."""
        self.end()
        self._step += 1
        self._steps = max(self._steps, self._step)
        self._name, self._total, self._done, self._shown = step, total, 0, -1
        self._draw()

    def advance(self, amount: int) -> None:
        """Move the current step on."""
        self._done += amount
        self._draw()

    def end(self) -> None:
        """Finish the current step."""
        if not self._name:
            return
        if self._total:
            self._done = self._total
        self._draw(is_last=True)
        if self._draws:
            self._errors.write("\n")
        self._name = ""

    def _draw(self, *, is_last: bool = False) -> None:
        if not (self._draws or self._counts) or not self._name:
            return
        percent = 100 if is_last else min(100, self._done * 100 // self._total) if self._total else 0
        if percent == self._shown:
            return
        self._shown = percent
        if self._counts:
            self._object(
                f'"type" : "progress", "currentStep" : {self._step}, "totalSteps" : {self._steps}, '
                f'"stepCompletion" : {percent}, "stepDescription" : {_quoted(self._name)}',
                more=True,
            )
        else:
            filled = percent * _WIDTH // 100
            self._errors.write(f"\r{self._name:<32} [{'#' * filled:<{_WIDTH}}] {percent:3d}%")
            self._errors.flush()

    def _clear(self) -> None:
        if self._draws and self._name:
            self._errors.write("\r\033[K")
            self._shown = -1

    def _line(self, text: str) -> None:
        self._clear()
        # Names of files are bytes; what is no text is shown as the bytes it is.
        self._stream.flush()
        data = text.encode("utf-8", "surrogateescape") + b"\n"
        buffer = getattr(self._stream, "buffer", None)
        if buffer is None:
            self._stream.write(data.decode("utf-8", "replace"))
        else:
            buffer.write(data)

    def _object(self, inside: str, *, more: bool) -> None:
        self._line(f"{{ {inside} }}{',' if more else ''}")


def _quoted(text: str) -> str:
    import json

    return json.dumps(os.fsencode(text).decode("utf-8", "replace"))
