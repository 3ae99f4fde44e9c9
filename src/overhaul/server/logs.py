"""How the server logs: one line an event on standard error, for people on a terminal and as JSON elsewhere."""

import logging
import sys
from typing import Any

import structlog

LEVELS = ("debug", "info", "warning", "error")
#: What the HTTP engine says, for each connection, of a client that offers HTTP/2 on an open connection, as libcurl and
#: with it every `ostree` does. The offer is declined by answering as before, and nobody has to act.
_DECLINED_OFFERS = ("Unsupported upgrade request.", "No supported WebSocket library detected.")


def configure_logging(level: str) -> None:
    """Send everything at `level` and above to standard error."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    # Quoted, so that no path a client made up can move the cursor of whoever reads the log.
    for_people = structlog.dev.ConsoleRenderer(repr_native_str=True)
    renderer: Any = for_people if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                *shared,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # The HTTP engine narrates its own life at "info"; only what it warns of concerns an operator.
    logging.getLogger("uvicorn").setLevel(max(number, logging.WARNING))
    logging.getLogger("alembic").setLevel(max(number, logging.WARNING))
    logging.getLogger("uvicorn.error").addFilter(_concerns_an_operator)


def _concerns_an_operator(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_DECLINED_OFFERS)
