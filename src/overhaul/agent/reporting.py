"""Telling the server what happened, only when the owner of the device asked for it.

A report names releases and costs, never the device: its id is made anew each time, and a second one, made anew for
each update, ties the reports of that update together, so that a device that announced its restart is missed when it
does not come back. A report is worth nothing compared with the update, so nothing that goes wrong with it is told;
how an update ended is sent again later, because a device has just started then and often has no network yet.
"""

import secrets
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import msgspec

from overhaul.agent.ports import Device
from overhaul.host.files import replace_bytes
from overhaul.release.record import ReleaseId

_TIMEOUT_S = 10.0
#: Reports that could not be sent and are kept: enough for any sane history, and little to write.
MAX_KEPT = 16
_TOO_MANY_REQUESTS = 429
_SERVER_ERRORS = 500


class ReportOutcome(StrEnum):
    """How far the device came."""

    CHECKED = "checked"
    INSTALLED = "installed"
    #: Installed, and the restart is still to come.
    WAITING = "waiting"
    #: Going down now, to come back with the new release.
    RESTARTING = "restarting"
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"
    #: Called off before it ran.
    CANCELLED = "cancelled"


#: How an update ends; the server waits for one of these.
_ENDINGS = frozenset({ReportOutcome.CONFIRMED, ReportOutcome.ROLLED_BACK, ReportOutcome.CANCELLED})


def report(
    device: Device,
    *,
    channel: str,
    running: ReleaseId,
    sought: ReleaseId | None,
    outcome: ReportOutcome,
    seconds: float = 0.0,
    error: Exception | None = None,
    update_id: str = "",
) -> None:
    """Send one report to wherever the device's reporter sends them."""
    document: dict[str, object] = {
        "report_id": secrets.token_hex(16),
        "product": running.product,
        "variant": running.variant,
        "arch": running.arch,
        "channel": channel,
        "from_version": running.version,
        "from_build_id": running.build_id,
        "outcome": outcome,
        "bytes_received": device.traffic.bytes_received,
        "requests": device.traffic.requests,
        "seconds": round(seconds, 3),
    }
    if sought is not None:
        document |= {"to_version": sought.version, "to_build_id": sought.build_id}
    if error is not None:
        document["error"] = type(error).__name__
    if update_id:
        document["update_id"] = update_id
    device.reporter.send(document)


class NoReports:
    """Sends nothing: the owner did not opt in."""

    def send(self, report: Mapping[str, object]) -> None:
        """Do nothing."""


class HttpReporter:
    """Posts reports as JSON to one address."""

    def __init__(self, *, url: str, proxy: str = "", ca_file: str = "") -> None:
        self._url = url
        self._proxy = proxy
        self._ca_file = ca_file

    def send(self, report: Mapping[str, object]) -> None:
        """Post one report."""
        self.deliver(report)

    def deliver(self, report: Mapping[str, object]) -> bool:
        """Post one report; False when it is worth trying again later."""
        import urllib3

        from overhaul.transfer.plain import open_pools
        from overhaul.transfer.settings import FetchSettings

        settings = FetchSettings(
            proxy=self._proxy or None,
            ca_file=Path(self._ca_file) if self._ca_file else None,
            connect_timeout_s=_TIMEOUT_S,
            min_speed_window_s=_TIMEOUT_S,
        )
        try:
            with open_pools(settings) as pools:
                answer = pools.request(
                    "POST",
                    self._url,
                    body=msgspec.json.encode(report),
                    headers={"Content-Type": "application/json"},
                    redirect=False,
                    # Only the status counts, and whoever answers may send more than this device can hold.
                    preload_content=False,
                )
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            # Never told on purpose: a report never fails an update.
            return False
        return answer.status != _TOO_MANY_REQUESTS and answer.status < _SERVER_ERRORS


class KeptReports:
    """Sends through an `HttpReporter`; how an update ended is kept in `path` until it was delivered."""

    def __init__(self, sender: HttpReporter, path: Path) -> None:
        self._sender = sender
        self._path = path

    def send(self, report: Mapping[str, object]) -> None:
        """Send what was kept, then this report."""
        before = self._load()
        waiting = [*before, report]
        while waiting and self._sender.deliver(waiting[0]):
            del waiting[0]
        kept = [one for one in waiting if one.get("outcome") in _ENDINGS][-MAX_KEPT:]
        if kept != before:
            self._store(kept)

    def _load(self) -> list[Mapping[str, object]]:
        try:
            data = self._path.read_bytes()
            return msgspec.json.decode(data, type=list[Mapping[str, object]])[:MAX_KEPT]
        except (OSError, ValueError, RecursionError):
            return []

    def _store(self, kept: list[Mapping[str, object]]) -> None:
        # A full or read-only medium costs a report and nothing else.
        with suppress(OSError):
            if kept:
                replace_bytes(self._path, msgspec.json.encode(kept), mode=0o600)
            else:
                self._path.unlink(missing_ok=True)
