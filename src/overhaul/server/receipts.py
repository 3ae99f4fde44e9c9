"""Receipts that came home in a kit, as device reports: checked like those that are posted, and stored beside them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from overhaul.server.database.engine import Database
from overhaul.server.database.migrating import upgrade
from overhaul.server.reports import DeviceReport, ReportStore
from overhaul.server.settings import DATABASE_FILE, ServerSettings


@dataclass(frozen=True, kw_only=True)
class ParsedReports:
    """Reports, and why others are none."""

    reports: tuple[DeviceReport, ...]
    refused: tuple[str, ...]


def parse_reports(documents: Sequence[tuple[str, bytes]]) -> ParsedReports:
    """Return the reports in (name, JSON bytes) documents, as strictly as the API takes them."""
    reports: list[DeviceReport] = []
    refused: list[str] = []
    for name, document in documents:
        try:
            reports.append(DeviceReport.model_validate_json(document))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the document"
            refused.append(f"The receipt {name} was left aside: {place}: {first['msg']}.")
    return ParsedReports(reports=tuple(reports), refused=tuple(refused))


def store_reports(repository: Path, reports: Sequence[DeviceReport]) -> int:
    """Store reports in the database of the repository's server; return how many were not there before."""
    (repository / DATABASE_FILE).parent.mkdir(parents=True, exist_ok=True)
    database = Database(ServerSettings.of_repository(repository).database_url)
    try:
        upgrade(database)
        store = ReportStore(database)
        now = int(time.time())
        return sum(store.add(report, now=now) for report in reports)
    finally:
        database.close()
