"""`steamos-atomupd-server -c FILE [-d]`: answer update queries out of an image pool.

The pool is printed when the server starts and on SIGUSR1; it is read again by itself when it changes, and at once on
SIGUSR2. Exit codes: 0 stopped by a signal; 1 any error; 2 wrong usage.
"""

import argparse
import asyncio
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from overhaul.dialects.atomupd.catalogue import Catalogue
from overhaul.dialects.atomupd.serve import QueryServer, create_query_app, is_local
from overhaul.dialects.atomupd.server_configuration import ServerConfiguration, read_server_configuration
from overhaul.errors import OperatorError, OverhaulError
from overhaul.host.listening import AddressUnavailableError, listen

_LOGGER = logging.getLogger(__name__)
_GRACE_S = 5


class ConfiguredAddressError(OperatorError):
    """The address in the configuration cannot be listened on."""

    exit_code = 1

    def __init__(self, *, host: str, port: int, reason: str) -> None:
        self.host = host
        self.port = port
        self.reason = reason
        super().__init__(f"{host} port {port} cannot be listened on ({reason}); correct [Server] Host and Port.")


class PlainHttpError(OperatorError):
    """The server would answer other machines in the clear, and nobody said that this is meant."""

    exit_code = 1

    def __init__(self, *, host: str) -> None:
        self.host = host
        super().__init__(
            f"[Server] Host {host} is reached by other machines, over plain http; give [Overhaul] Certificate and "
            "CertificateKey, keep Host at localhost behind a proxy that speaks https, or set AllowHttp = yes."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the console script. Return its exit code."""
    parser = argparse.ArgumentParser(
        prog="steamos-atomupd-server", description="Answer the update queries of devices out of an image pool."
    )
    parser.add_argument("-c", "--config", metavar="FILE", type=Path, required=True, help="configuration file")
    parser.add_argument("-d", "--debug", action="store_true", help="say everything")
    options = parser.parse_args(argv)
    level = logging.DEBUG if options.debug else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        _serve(read_server_configuration(options.config))
    except OverhaulError as error:
        _LOGGER.error("%s", error)  # noqa: TRY400 - a sentence for a person; bugs keep their traceback
        return 1
    return 0


def pool_report(catalogue: Catalogue, *, seconds: float | None = None) -> str:
    """Return the pool as people read it."""
    lines: list[str] = []
    for (product, arch, release, variant, branch), entries in sorted(catalogue.lists.items()):
        name = "/".join(part for part in (product, release, arch, variant, branch) if part)
        lines.append(f"{name}: {len(entries)} images")
        lines += [
            f"  {entry.image.version} {entry.image.build_id}  {entry.update_path or '(shadow)'}" for entry in entries
        ]
    lines.append(f"{len(catalogue.recorded)} images in all, {len(catalogue.problems)} left out")
    if seconds is not None:
        lines.append(f"Loaded in {seconds:.3f} s")
    return "\n".join(lines)


def _serve(configuration: ServerConfiguration) -> None:
    application = create_query_app(configuration)
    begun = time.monotonic()
    application.start()
    try:
        _print_pool(application, time.monotonic() - begun)
        listening = _listen(configuration.host, configuration.port)
        host, port = listening.getsockname()[:2]
        if configuration.certificate is None and not configuration.allow_http and not is_local(host):
            listening.close()
            raise PlainHttpError(host=configuration.host)
        server = uvicorn.Server(
            uvicorn.Config(
                application,
                lifespan="on",
                log_config=None,
                log_level=logging.WARNING,
                access_log=_LOGGER.isEnabledFor(logging.DEBUG),
                server_header=False,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=_GRACE_S,
                ws="none",
                ssl_certfile=configuration.certificate,
                ssl_keyfile=configuration.certificate_key,
            )
        )
        _handle_signals(application, server)
        # Only now: whoever waits for this line may send a signal at once.
        print(f"Listening on {host} port {port}", flush=True)  # noqa: T201 - what a person who starts it by hand needs
        asyncio.run(server.serve(sockets=[listening]))
    finally:
        application.stop()


def _handle_signals(application: QueryServer, server: uvicorn.Server) -> None:
    def show(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=_print_pool, args=(application, None), daemon=True).start()

    def reload(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=application.reload, daemon=True).start()

    def end(_number: int, _frame: FrameType | None) -> None:
        # The engine raises the signal that ended it once more, after it has ended: that is no news.
        server.should_exit = True

    signal.signal(signal.SIGUSR1, show)
    signal.signal(signal.SIGUSR2, reload)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


def _print_pool(application: QueryServer, seconds: float | None) -> None:
    if application.catalogue is not None:
        print(pool_report(application.catalogue, seconds=seconds), flush=True)  # noqa: T201 - what the signal asks for


def _listen(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except AddressUnavailableError as error:
        raise ConfiguredAddressError(host=host, port=port, reason=error.reason) from error


if __name__ == "__main__":
    sys.exit(main())
