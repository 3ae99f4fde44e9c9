"""How a device fetches.

Nothing here reads the environment: a proxy or a certificate file is used because the configuration names it.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


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
    #: Whether all that is fetched are published files, so that a web page or a content coding is never the answer.
    published_only: bool = False
