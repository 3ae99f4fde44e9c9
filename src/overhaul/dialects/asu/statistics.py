"""What was built, counted: from the records of builds that the queue keeps, anonymous, at most a minute old.

Nothing here names a client's address, and a request hash is masked wherever a text could hold one, because whoever
knows it can fetch the image.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from overhaul.builds.records import BuildRecord, BuildState
from overhaul.dialects.asu.names import branch_of
from overhaul.dialects.asu.parts import Parts
from overhaul.dialects.asu.resolving import default_packages

_DAY_S = 86400.0
_DAYS = 30
_WEEKS = 26
_READ_AT_MOST = 20_000
_FRESH_S = 60.0
_SHOWN_ERRORS = 500
_SHOWN_PACKAGES = 100
_RULE = "-" * 60
_JOB = re.compile(r"\b[0-9a-f]{64}\b")


class Statistics:
    """Counts for the interfaces and the operator's page."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = threading.Lock()
        self._read: tuple[float, tuple[BuildRecord, ...]] | None = None

    def today(self) -> dict[str, Callable[[str, int], object]]:
        """Return the answers of today's interface by path: each takes a branch and a number."""
        return {
            "stats": lambda _branch, _count: {"queue_length": self._parts.queue.waiting()},
            "stats/summary": lambda _branch, _count: self.summary(),
            "builds-per-day": lambda _branch, _count: self.per_day(),
            "builds-by-version": lambda branch, _count: self.by_version(branch),
            "top-packages": lambda branch, count: {
                "packages": [
                    {"name": name, "count": number}
                    for name, number in self.popular_packages(branch)[: min(count, _SHOWN_PACKAGES)]
                ],
                "branch": branch,
                "days": _DAYS,
            },
            "build-errors": lambda _branch, count: self.errors(count),
        }

    def builds(self, *, days: float) -> list[BuildRecord]:
        """Return the builds of the last days, the newest first."""
        now = self._parts.clock()
        with self._lock:
            if self._read is None or not 0 <= now - self._read[0] < _FRESH_S:
                since = now - _WEEKS * 7 * _DAY_S
                self._read = (now, self._parts.queue.recent(limit=_READ_AT_MOST, since=since))
            read = self._read[1]
        return [build for build in read if build.enqueued_at >= now - days * _DAY_S]

    def summary(self) -> dict[str, int]:
        """Return the length of the queue and the builds of a day."""
        return {"queue_length": self._parts.queue.waiting(), "builds_24h": len(self.builds(days=1))}

    def per_day(self) -> dict[str, object]:
        """Return requests, answers from the cache and failures of each of the last days."""
        today = datetime.fromtimestamp(self._parts.clock(), tz=UTC).date()
        days = [today - timedelta(days=back) for back in reversed(range(_DAYS))]
        requests, hits, failures = Counter[str](), Counter[str](), Counter[str]()
        for build in self.builds(days=_DAYS + 1):
            day = datetime.fromtimestamp(build.enqueued_at, tz=UTC).date().isoformat()
            requests[day] += build.requests
            hits[day] += build.requests - 1
            failures[day] += build.state is BuildState.FAILED
        return {
            "labels": [f"{day.isoformat()}Z" for day in days],
            "datasets": [
                {"label": label, "data": [counts[day.isoformat()] for day in days], "color": color}
                for label, counts, color in (
                    ("Requests", requests, "green"),
                    ("Cache-Hits", hits, "orange"),
                    ("Failures", failures, "red"),
                )
            ],
        }

    def by_version(self, branch: str = "") -> dict[str, object]:
        """Return the builds of each week by branch, or by version of one branch."""
        today = datetime.fromtimestamp(self._parts.clock(), tz=UTC).date()
        monday = today - timedelta(days=today.weekday())
        weeks = [monday - timedelta(weeks=back) for back in reversed(range(_WEEKS))]
        counts: dict[str, Counter[str]] = {}
        for build in self.builds(days=_WEEKS * 7):
            day = datetime.fromtimestamp(build.enqueued_at, tz=UTC).date()
            week = (day - timedelta(days=day.weekday())).isoformat()
            own = branch_of(build.recipe.version, self._parts.settings.branches) or build.recipe.version
            if not branch or own == branch:
                counts.setdefault(build.recipe.version if branch else own, Counter())[week] += 1
        return {
            "labels": [f"{week.isoformat()}Z" for week in weeks],
            "datasets": [
                {"label": label, "data": [of[week.isoformat()] for week in weeks]}
                for label, of in sorted(counts.items(), reverse=True)
            ],
        }

    def popular_packages(self, branch: str = "") -> list[tuple[str, int]]:
        """Return the packages asked for beside the defaults, the most popular first."""
        catalogue = self._parts.catalogue.now()
        defaults: dict[tuple[str, str, str], frozenset[str]] = {}
        counts: Counter[str] = Counter()
        for build in self.builds(days=_DAYS):
            recipe = build.recipe
            if branch and branch_of(recipe.version, self._parts.settings.branches) != branch:
                continue
            key = (recipe.version, recipe.target, recipe.profile)
            if key not in defaults:
                system = catalogue.system(recipe.distribution, recipe.version)
                given = () if system is None else default_packages(catalogue, system, recipe.target, recipe.profile)
                defaults[key] = frozenset(given)
            chosen = {name for name in recipe.packages if not name.startswith("-")} - defaults[key]
            counts.update(dict.fromkeys(chosen, build.requests))
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))

    def popular_targets(self) -> list[tuple[str, int, float]]:
        """Return targets with their builds and mean seconds, the most popular first."""
        counts: Counter[str] = Counter()
        seconds: dict[str, list[float]] = {}
        for build in self.builds(days=_DAYS):
            counts[build.recipe.target] += 1
            if build.result is not None:
                seconds.setdefault(build.recipe.target, []).append(build.result.build_seconds)
        return sorted(
            ((target, count, _mean(seconds.get(target, []))) for target, count in counts.items()),
            key=lambda row: (-row[1], row[0]),
        )

    def failures(self, count: int) -> list[BuildRecord]:
        """Return failed builds, the newest first."""
        return [build for build in self.builds(days=_DAYS) if build.state is BuildState.FAILED][:count]

    def errors(self, count: int) -> str:
        """Return the failures as the text that today's interface shows."""
        failed = self.failures(5000)
        if not failed:
            return "No build errors recorded."
        shown = failed[: min(count, _SHOWN_ERRORS)]
        lines = [
            f"Build Errors: {len(failed)} entries",
            f"Time range: {_moment(failed[-1])} - {_moment(failed[0])}",
            "Recent errors:",
            _RULE,
            *(f"{_moment(build)} {_named(build)} {failure_text(build)}" for build in shown),
        ]
        return "\n".join(lines) + "\n"

    def counted(self) -> Iterable[tuple[str, dict[str, str], float]]:
        """Yield (name, labels, value) under the names that servers of 2022 to 2024 gave their metrics."""
        builds = self.builds(days=_DAYS)
        total: Counter[tuple[str, str, str]] = Counter()
        clients: Counter[str] = Counter()
        for build in builds:
            recipe = build.recipe
            total[(recipe.version, recipe.target, recipe.profile)] += build.state is BuildState.FINISHED
            clients[build.client_label] += build.requests
        for (version, target, profile), number in sorted(total.items()):
            yield "builds_total", {"version": version, "target": target, "profile": profile}, number
        for label, number in sorted(clients.items()):
            name, _slash, version = label.partition("/")
            yield "clients_total", {"name": name, "version": version}, number
        yield "cache_hits", {}, sum(build.requests - 1 for build in builds)
        yield "cache_misses", {}, len(builds)


def failure_text(build: BuildRecord) -> str:
    """Return why a build failed in one line, with names of requests masked."""
    text = "failed" if build.failure is None else " ".join(build.failure.detail.split())
    return _JOB.sub("[job-id]", text)[:200]


def _named(build: BuildRecord) -> str:
    return f"{build.recipe.version}:{build.recipe.target}:{build.recipe.profile}"


def _moment(build: BuildRecord) -> str:
    at = build.finished_at if build.finished_at is not None else build.enqueued_at
    return datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
