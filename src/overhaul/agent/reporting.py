"""Telling the server what happened, only when the owner of the device asked for it.

A report names releases and costs, never the device: its id is made anew each time. It is worth nothing compared with
the update, so whatever goes wrong with it is forgotten.
"""

import secrets
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from overhaul.agent.ports import Device
from overhaul.release.record import ReleaseId

_TIMEOUT_S = 10.0


class ReportOutcome(StrEnum):
    """How far the device came."""

    INSTALLED = "installed"
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"


def report(
    device: Device,
    *,
    channel: str,
    running: ReleaseId,
    sought: ReleaseId | None,
    outcome: ReportOutcome,
    seconds: float = 0.0,
    error: Exception | None = None,
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
        import urllib3

        ca_certs = self._ca_file or None
        try:
            with (
                urllib3.ProxyManager(self._proxy, ca_certs=ca_certs)
                if self._proxy
                else urllib3.PoolManager(ca_certs=ca_certs)
            ) as pool:
                pool.request(
                    "POST",
                    self._url,
                    body=msgspec.json.encode(report),
                    headers={"Content-Type": "application/json"},
                    timeout=_TIMEOUT_S,
                    retries=False,
                    redirect=False,
                )
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            # Forgotten on purpose: a report never fails an update.
            return
