"""What the routes share: made once by `app.create_app` and handed to each group of routes."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import anyio.to_thread

from overhaul.errors import OverhaulError
from overhaul.server.catalogue import Catalogue
from overhaul.server.current import CurrentCatalogue
from overhaul.server.database.engine import Database, DatabaseFailedError
from overhaul.server.exposure import ExposureHistory
from overhaul.server.health import Health, judge_health
from overhaul.server.metrics import Metrics
from overhaul.server.pointer import Pointer
from overhaul.server.reports import ReportStore, ReportSummary, StoredReport
from overhaul.server.settings import ServerSettings
from overhaul.server.statistics import FleetStatistics
from overhaul.server.tree import PublicTree
from overhaul.server.volume import ServedHours, Volume

#: What people read may be this old.
_REPORTS_AGE_S = 2.0
SUMMARY_DAYS = 7
_RECENT_REPORTS = 12

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportsNow:
    """The reports as the status page and the summary show them."""

    summary: ReportSummary
    recent: tuple[StoredReport, ...]
    #: Why they could not be read, in words.
    problem: str | None


class Parts:
    """The parts of one running application."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        tree: PublicTree,
        database: Database,
        clock: Callable[[], float],
        builds_counted: Callable[[], Iterable[tuple[str, dict[str, str], float]]] | None = None,
    ) -> None:
        self.settings = settings
        self.tree = tree
        self.database = database
        self.clock = clock
        self.pointer = Pointer(tree, ask_every_s=settings.ask_storage_every_s)
        self.catalogue = CurrentCatalogue(tree, self.pointer)
        self.reports = ReportStore(database)
        self.metrics = Metrics()
        self.volume = Volume()
        self.served = ServedHours(database)
        self.exposure = ExposureHistory(database)
        self.statistics = FleetStatistics(database)
        self._builds_counted = builds_counted
        self._reports_now: tuple[float, ReportsNow] | None = None

    @property
    def now(self) -> int:
        """Seconds since 1970 UTC."""
        return int(self.clock())

    async def reports_now(self) -> ReportsNow:
        """Return the reports of the last days, at most a moment old."""
        now = self.clock()
        if self._reports_now is None or not 0 <= now - self._reports_now[0] < _REPORTS_AGE_S:
            found = await anyio.to_thread.run_sync(self._read_reports, int(now) - SUMMARY_DAYS * 86400)
            self._reports_now = (now, found)
        return self._reports_now[1]

    async def health(self) -> tuple[Health, Catalogue | None]:
        """Return how the server is, and the catalogue this was judged by."""
        catalogue = await self.catalogue.get()
        reports = await self.reports_now() if self.settings.reports else None
        health = judge_health(
            catalogue=catalogue,
            reading_problem=self.catalogue.problem,
            database_problem=None if reports is None else reports.problem,
            now=self.now,
            warn_before_s=self.settings.warn_before_expiry_s,
        )
        return health, catalogue

    async def rendered_metrics(self) -> bytes:
        """Return everything that Prometheus may read."""
        catalogue = await self.catalogue.get()
        counted = self._builds_counted
        builds: Iterable[tuple[str, dict[str, str], float]] = ()
        if counted is not None:
            try:
                builds = await anyio.to_thread.run_sync(counted)
            except OverhaulError as error:
                # The figures of everything else are needed most while a database does not answer.
                _LOGGER.warning("builds cannot be counted: %s", error)
        return self.metrics.render(catalogue, now=self.clock(), builds=builds)

    def _read_reports(self, since: int) -> ReportsNow:
        try:
            summary = self.reports.summary(since=since)
            return ReportsNow(summary=summary, recent=self.reports.recent(limit=_RECENT_REPORTS), problem=None)
        except DatabaseFailedError as error:
            nothing = ReportSummary(since=since, total=0, outcomes={}, errors={}, releases=())
            return ReportsNow(summary=nothing, recent=(), problem=str(error))
