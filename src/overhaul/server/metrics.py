"""What Prometheus may read: traffic by class of route, reports by outcome, expiry and age of what is published.

Counters are shared between worker processes through files when `PROMETHEUS_MULTIPROC_DIR` is set before this
module is imported (`process.run_server` does); the figures of the repository are made when they are asked for.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import ValueClass

from overhaul.server.catalogue import Catalogue

# A second series for each counter that only says when the process began.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here

#: Classes of routes, by the beginning of the path; a label must not take any value a client likes.
_CLASSES = (
    ("/metadata/timestamp.json", "poll"),
    ("/metadata/", "metadata"),
    ("/targets/", "targets"),
    ("/content/", "content"),
    ("/castr/", "castr"),
    ("/atomupd/", "atomupd"),
    ("/ostree/", "ostree"),
    ("/swupd/", "swupd"),
    ("/api/v1/builds-", "api"),
    ("/api/v1/build-", "api"),
    ("/api/v1/build", "asu-build"),
    ("/api/build", "asu-build"),
    ("/api/upgrade-", "asu-build"),
    ("/json/v1/", "asu-catalogue"),
    ("/store/", "asu-file"),
    ("/json/", "asu-file"),
    ("/download/", "asu-file"),
    ("/api/image/", "asu-file"),
    ("/firmware", "asu-page"),
    ("/builds", "asu-page"),
    ("/api/", "api"),
    ("/health/", "health"),
    ("/metrics", "metrics"),
)
#: The class of a query to an atomupd pool; its path is the operator's choice.
ATOMUPD_QUERY = "atomupd-query"
_METHODS = frozenset({"GET", "HEAD", "POST"})


def route_class(path: str) -> str:
    """Return the class of the route that answers for `path`."""
    for beginning, name in _CLASSES:
        if path.startswith(beginning):
            return name
    return "page"


class Metrics:
    """The counters of one application."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "overhaul_http_requests", "Requests answered.", ("route", "method", "status"), registry=self._registry
        )
        self._bytes = Counter("overhaul_http_body_bytes", "Body bytes sent.", ("route",), registry=self._registry)
        self._seconds = Histogram(
            "overhaul_http_seconds",
            "Time from the request to the end of its answer.",
            ("route",),
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600),
            registry=self._registry,
        )
        #: Finding the series of a set of labels costs more than counting in them.
        self._series: dict[tuple[str, str, int], tuple[Counter, Counter, Histogram]] = {}
        self._reports = Counter("overhaul_device_reports", "Reports taken.", ("outcome",), registry=self._registry)

    def count_request(self, *, route: str, method: str, status: int, body_bytes: int, seconds: float) -> None:
        """Count one answered request; `route` is its class."""
        known_method = method if method in _METHODS else "other"
        series = self._series.get((route, known_method, status))
        if series is None:
            series = self._series[route, known_method, status] = (
                self._requests.labels(route, known_method, str(status)),
                self._bytes.labels(route),
                self._seconds.labels(route),
            )
        requests, size, duration = series
        requests.inc()
        size.inc(body_bytes)
        duration.observe(seconds)

    def count_report(self, outcome: str) -> None:
        """Count one stored report."""
        self._reports.labels(outcome).inc()

    def render(
        self,
        catalogue: Catalogue | None,
        *,
        now: float,
        builds: Iterable[tuple[str, dict[str, str], float]] = (),
    ) -> bytes:
        """Return everything in Prometheus' text format; `builds` are more values, by name and labels."""
        registry = CollectorRegistry()
        if ValueClass.__name__ == "MmapedValue":
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library has no types here
        else:
            registry.register(_Copied(self._registry))
        registry.register(_Copied(_repository_metrics(catalogue, now=now)))
        registry.register(_Copied(_build_metrics(builds)))
        return generate_latest(registry)


class _Copied(Collector):
    """Hands on metrics that exist already."""

    def __init__(self, source: "CollectorRegistry | Iterable[Metric]") -> None:
        self._metrics = source.collect() if isinstance(source, CollectorRegistry) else source

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _repository_metrics(catalogue: Catalogue | None, *, now: float) -> Iterator[Metric]:
    readable = GaugeMetricFamily("overhaul_repository_readable", "Whether signed metadata could be read.")
    readable.add_metric([], 0 if catalogue is None else 1)
    yield readable
    if catalogue is None:
        return
    expiry = GaugeMetricFamily(
        "overhaul_metadata_expiry_seconds", "Time until a role expires; negative when it has.", labels=["role"]
    )
    for role in catalogue.roles:
        expiry.add_metric([role.name], role.expires_at - now)
    yield expiry
    releases = GaugeMetricFamily("overhaul_releases", "Releases published.", labels=["product"])
    for product in sorted({release.id.product for release in catalogue.releases}):
        releases.add_metric([product], sum(1 for release in catalogue.releases if release.id.product == product))
    yield releases
    if catalogue.published_at is not None:
        age = GaugeMetricFamily("overhaul_publish_age_seconds", "Time since the newest release was published.")
        age.add_metric([], now - catalogue.published_at)
        yield age


def _build_metrics(values: Iterable[tuple[str, dict[str, str], float]]) -> Iterable[Metric]:
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for name, labels, value in values:
        family = families.get(name)
        if family is None:
            # A counter's name ends in _total, which the library adds; other names stay as dashboards know them.
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = families[name] = kind(name, "Images on demand, of the last 30 days.", labels=list(labels))
        family.add_metric(list(labels.values()), value)
    return families.values()
