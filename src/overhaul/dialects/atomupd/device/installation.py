"""One installation that the daemon runs: the client's process, its progress, pausing and ending it."""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

from overhaul.dialects.atomupd.device.children import end_tree, is_running, runs_program, signal_tree
from overhaul.dialects.atomupd.device.completion import completion_time, parse_line
from overhaul.errors import BusyError, DeviceError
from overhaul.host.files import replace_bytes

#: What the client's command line is known by.
CLIENT_WORD = "atomupd"
_KEPT_ERROR_LINES = 20


class UpdateStatus(IntEnum):
    """As the interface counts them."""

    IDLE = 0
    IN_PROGRESS = 1
    PAUSED = 2
    SUCCESSFUL = 3
    FAILED = 4
    CANCELLED = 5


class NothingUnderWayError(DeviceError):
    """What was asked for needs an installation that runs, or one that is paused."""

    def __init__(self, *, act: str) -> None:
        self.act = act
        super().__init__(f"There is no update that could be {act}.")


class UpdateUnderWayError(BusyError):
    """An installation is under way."""

    def __init__(self) -> None:
        super().__init__("An update is under way; wait for it or cancel it first.")


class Installation:
    """The installation under way, or how the last one ended."""

    def __init__(
        self,
        *,
        changed: Callable[[], None],
        rauc_process: Callable[[], "asyncio.Future[int | None]"] | None,
        pid_file: Path,
    ) -> None:
        self.status = UpdateStatus.IDLE
        self.percent = 0.0
        self.completes_at = 0
        self.failure = ""
        self._changed = changed
        self._rauc_process = rauc_process
        self._pid_file = pid_file
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        #: A RAUC that was stopped together with the client; it could not answer who it is.
        self._stopped_rauc: int | None = None
        self._began = 0.0

    @property
    def is_under_way(self) -> bool:
        """Whether a client runs or is stopped."""
        return self.status in {UpdateStatus.IN_PROGRESS, UpdateStatus.PAUSED}

    async def start(
        self, arguments: Sequence[str], *, environment: dict[str, str], succeeded: Callable[[], None]
    ) -> None:
        """Start the client with `arguments`; `succeeded` is called when it has installed."""
        if self.is_under_way:
            raise UpdateUnderWayError
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        replace_bytes(self._pid_file, f"{process.pid}\n".encode())
        self._process = process
        self._began = time.time()
        self.percent, self.completes_at, self.failure = 0.0, 0, ""
        self._set(UpdateStatus.IN_PROGRESS)
        self._task = asyncio.create_task(self._watch(process, succeeded))

    async def pause(self) -> None:
        """Stop the client and RAUC where they are."""
        if self.status is not UpdateStatus.IN_PROGRESS:
            raise NothingUnderWayError(act="paused")
        self._stopped_rauc = await self._rauc_process() if self._rauc_process is not None else None
        self._signal_all(signal.SIGSTOP)
        self.completes_at = 0
        self._set(UpdateStatus.PAUSED)

    async def resume(self) -> None:
        """Let them go on."""
        if self.status is not UpdateStatus.PAUSED:
            raise NothingUnderWayError(act="resumed")
        self._signal_all(signal.SIGCONT)
        self._stopped_rauc = None
        self._set(UpdateStatus.IN_PROGRESS)

    async def cancel(self) -> None:
        """End them; what was written so far is found again by the next installation."""
        process = self._process
        if not self.is_under_way or process is None:
            raise NothingUnderWayError(act="cancelled")
        self._set(UpdateStatus.CANCELLED)
        await end_tree(process.pid)
        if self._stopped_rauc is not None:
            await end_tree(self._stopped_rauc)
            self._stopped_rauc = None
        else:
            await end_rauc(self._rauc_process)
        if self._task is not None:
            await self._task

    async def close(self) -> None:
        """End what runs because the daemon ends."""
        if self.is_under_way:
            await self.cancel()

    async def _watch(self, process: asyncio.subprocess.Process, succeeded: Callable[[], None]) -> None:
        errors = asyncio.create_task(_last_lines(process))
        assert process.stdout is not None  # noqa: S101 - it was asked for
        async for line in process.stdout:
            self._take(line.decode("utf-8", "replace"))
        code = await process.wait()
        said = await errors
        self._pid_file.unlink(missing_ok=True)
        self._process = None
        if self.status is UpdateStatus.CANCELLED:
            return
        if code == 0:
            self.percent, self.completes_at = 100.0, 0
            succeeded()
            self._set(UpdateStatus.SUCCESSFUL)
        else:
            self.failure = said or f"The client ended with status {code}."
            self._set(UpdateStatus.FAILED)

    def _take(self, line: str) -> None:
        told = parse_line(line)
        if told is not None:
            self.percent = told.percent
            self.completes_at = completion_time(told, began=self._began, now=time.time())
            self._changed()

    def _signal_all(self, number: signal.Signals) -> None:
        for process in (self._process.pid if self._process is not None else None, self._stopped_rauc):
            if process is not None:
                signal_tree(process, number)

    def _set(self, status: UpdateStatus) -> None:
        self.status = status
        self._changed()


async def end_rauc(rauc_process: Callable[[], "asyncio.Future[int | None]"] | None) -> None:
    """End a RAUC that is at work; it is started again when somebody calls it."""
    rauc = await rauc_process() if rauc_process is not None else None
    if rauc is not None:
        await end_tree(rauc)


async def end_earlier_client(pid_file: Path) -> None:
    """End a client that an earlier daemon left behind."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return
    # The number may be another program's by now.
    if is_running(pid) and runs_program(pid, CLIENT_WORD):
        await end_tree(pid)
    with suppress(FileNotFoundError):
        pid_file.unlink()


async def _last_lines(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None  # noqa: S101 - it was asked for
    kept: list[str] = []
    async for line in process.stderr:
        text = line.decode("utf-8", "replace").strip()
        kept = [*kept, text][-_KEPT_ERROR_LINES:]
    errors = [line for line in kept if line.startswith("ERROR:")]
    # `LEVEL:file:line: text`; the reader of a failure wants the text.
    return errors[-1].split(": ", 1)[-1] if errors else (kept[-1] if kept else "")
