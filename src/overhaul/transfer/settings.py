"""How a device fetches, and the one place that turns that into a fetcher.

Nothing here reads the environment: a proxy or a certificate file is used because the configuration names it.
The fetcher returned is an engine with the wrappers the settings ask for (mirrors, bandwidth cap). Resuming and
counting are the business of whoever runs a whole piece of work, because only they know its budget.

A fetcher belongs to one thread at a time.
"""

import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from overhaul.transfer.fetcher import Fetcher
from overhaul.transfer.limited import LimitedFetcher
from overhaul.transfer.mirrors import MirrorFetcher


class Engine(StrEnum):
    """Which library speaks HTTP."""

    #: curl where it can be imported, else plain.
    AUTOMATIC = "automatic"
    CURL = "curl"
    PLAIN = "plain"


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """What a person may set about fetching."""

    #: Plain http is refused unless this is set.
    allow_http: bool = False
    #: `http://host:port` of a proxy for every request.
    proxy: str | None = None
    #: PEM file with the authorities to trust instead of the system's.
    ca_file: Path | None = None
    connect_timeout_s: float = 30.0
    #: A transfer that brings fewer bytes per second than this, measured over each window of waiting, is broken off.
    min_bytes_per_s: int = 512
    min_speed_window_s: float = 30.0
    #: Bandwidth cap; None is unlimited.
    max_bytes_per_s: int | None = None
    #: Base URLs of the same repository, best first. Requests name the first one.
    mirrors: tuple[str, ...] = ()
    engine: Engine = Engine.AUTOMATIC
    user_agent: str = "overhaul"


def open_fetcher(settings: FetchSettings) -> Fetcher:
    """Return a fetcher that keeps to `settings`."""
    fetcher = _open_engine(settings)
    if settings.max_bytes_per_s is not None:
        fetcher = LimitedFetcher(
            fetcher, max_bytes_per_s=settings.max_bytes_per_s, clock=time.monotonic, wait=time.sleep
        )
    if len(settings.mirrors) > 1:
        fetcher = MirrorFetcher(fetcher, base_urls=settings.mirrors)
    return fetcher


def _open_engine(settings: FetchSettings) -> Fetcher:
    if settings.engine is not Engine.PLAIN:
        try:
            from overhaul.transfer.curl import CurlFetcher

            return CurlFetcher(settings)
        except ImportError:
            if settings.engine is Engine.CURL:
                raise
    from overhaul.transfer.plain import PlainFetcher

    return PlainFetcher(settings)
