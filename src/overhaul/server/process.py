"""The server process: one listening socket, one or more workers, a graceful stop.

On SIGTERM or SIGINT no new connection is taken, answers under way may end within a grace period, and the
process leaves with code 0. With several workers a parent watches them and starts a dead one again.
"""

import contextlib
import functools
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess

from overhaul.server.settings import ServerSettings

#: How long answers under way may take to end after the signal.
GRACE_S = 20


def url_of(listening: socket.socket) -> str:
    """Return the address people and devices use for `listening`."""
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def run_server(
    settings: ServerSettings, *, listening: socket.socket, workers: int, log_level: str, on_ready: Callable[[], None]
) -> None:
    """Serve on `listening` until a signal says stop; call `on_ready` once requests are answered."""
    with _stopped_by_signals():
        if workers == 1:
            one_worker(functools.partial(_make_app, settings, log_level), on_ready).run(sockets=[listening])
            return
        _refuse_early(settings)
        with _shared_metrics():
            config = _config(functools.partial(_make_app, settings, log_level), workers=workers)
            # The socket listens already: requests wait in its queue until the first worker takes them.
            on_ready()
            Multiprocess(config, sockets=[listening]).run()


def _refuse_early(settings: ServerSettings) -> None:
    """Say here what every worker would stumble over, because a worker that ends is only started again."""
    from overhaul.server.atomupd import open_query_servers
    from overhaul.server.tree import open_tree

    open_query_servers(settings, open_tree(settings.storage))
    if settings.images_on_demand is not None:
        from overhaul.server.asu import AsuDoor

        AsuDoor(settings.images_on_demand).close()


def one_worker(make_app: Callable[[], ASGIApp], on_ready: Callable[[], None]) -> uvicorn.Server:
    """Return the engine as every worker runs it; `run(sockets=[...])` begins."""
    return _OneWorker(_config(make_app), on_ready)


class _OneWorker(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()


def _make_app(settings: ServerSettings, log_level: str) -> ASGIApp:
    # Imported here so that a worker process knows where metrics are shared before they are made.
    from overhaul.server.app import create_app
    from overhaul.server.logs import configure_logging

    configure_logging(log_level)
    return create_app(settings)


def _config(make_app: Callable[[], ASGIApp], *, workers: int = 1) -> uvicorn.Config:
    return uvicorn.Config(
        make_app,
        factory=True,
        workers=workers,
        log_config=None,
        access_log=False,  # the application logs requests itself
        server_header=False,  # 17 bytes of every poll that tell nobody anything
        timeout_keep_alive=15,
        timeout_graceful_shutdown=GRACE_S,
        ws="none",
    )


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let the engine's handlers see the signals, and let none of them end the process before it is done."""

    def ignore(_number: int, _frame: FrameType | None) -> None:
        """Take the signal that the engine raises again after it has stopped."""

    before = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _shared_metrics() -> Iterator[None]:
    directory = Path(tempfile.mkdtemp(prefix="overhaul-metrics-"))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    try:
        yield
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        shutil.rmtree(directory, ignore_errors=True)
