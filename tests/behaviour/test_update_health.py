"""How reports become evidence, whichever database holds them."""

import itertools
import random
from collections.abc import Iterator, Mapping

import pytest
from tests.postgresql import postgresql

from overhaul.policy.health import Evidence
from overhaul.publishing.rollouts import Question
from overhaul.release.record import ReleaseId
from overhaul.server.database import migrating
from overhaul.server.database.engine import Database, sqlite_url
from overhaul.server.reports import DeviceReport, ReportStore
from overhaul.server.update_health import evidence_of

RELEASE = ReleaseId(product="alpha", variant="desk", arch="amd64", version="1.1", build_id="b2")
HOUR_S = 3600
NOW = 1_800_000_000
#: Hours ago, outcome.
_Told = tuple[float, str]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        opened = Database(sqlite_url(tmp_path_factory.mktemp("database") / "reports.sqlite3"))
        yield opened
        opened.close()
        return
    with postgresql() as address:
        opened = Database(address)
        yield opened
        opened.close()


class _Reports:
    """Stores the reports of updates, and asks for the evidence."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._store = ReportStore(database)
        self._numbers = itertools.count()

    def update(self, *told: _Told, linked: bool = True, changes: Mapping[str, str | None] | None = None) -> None:
        """Store the reports of one update."""
        update_id = f"{next(self._numbers):032x}" if linked else None
        for hours_ago, outcome in told:
            fields: dict[str, object] = {
                "report_id": f"{next(self._numbers):032x}",
                "product": "alpha",
                "variant": "desk",
                "arch": "amd64",
                "channel": "stable",
                "from_version": "1.0",
                "from_build_id": "b1",
                "to_version": "1.1",
                "to_build_id": "b2",
                "outcome": outcome,
                "update_id": update_id,
            }
            report = DeviceReport.model_validate(fields | dict(changes or {}))
            assert self._store.add(report, now=round(NOW - hours_ago * HOUR_S))

    def prune(self, *, keep_at_most: int) -> int:
        """Remove what is too much; return how many reports that were."""
        return self._store.prune(before=0, keep_at_most=keep_at_most)

    def evidence(self, *, since: int = 0, now: int = NOW) -> Evidence:
        """Count them."""
        question = Question(
            release=RELEASE,
            channel="stable",
            since=since,
            now=now,
            restart_grace_s=3 * HOUR_S,
            silence_grace_s=96 * HOUR_S,
        )
        return evidence_of(self._database, question)


@pytest.fixture
def reports(database: Database) -> _Reports:
    migrating.downgrade(database)
    migrating.upgrade(database)
    return _Reports(database)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], Evidence()),
        ([(5, "installed"), (5, "restarting"), (4.9, "confirmed")], Evidence(confirmed=1, confirmed_and_settled=1)),
        ([(1, "installed"), (1, "restarting"), (0.9, "confirmed")], Evidence(confirmed=1)),
        ([(5, "installed"), (5, "restarting"), (4.9, "rolled-back")], Evidence(rolled_back=1)),
        ([(5, "restarting"), (4.9, "confirmed"), (1, "rolled-back")], Evidence(rolled_back=1)),
        ([(5, "installed"), (5, "restarting")], Evidence(lost=1)),
        ([(2, "installed"), (2, "restarting")], Evidence(open=1)),
        ([(50, "installed")], Evidence(open=1)),
        ([(97, "installed")], Evidence(lost=1)),
        ([(97, "installed"), (50, "waiting")], Evidence(open=1)),
        ([(200, "installed"), (97, "waiting")], Evidence(lost=1)),
        ([(9, "restarting"), (8, "waiting")], Evidence(open=1)),
        ([(9, "waiting"), (8, "restarting")], Evidence(lost=1)),
        ([(200, "failed")], Evidence(not_installed=1)),
        ([(200, "failed"), (5, "installed"), (5, "restarting")], Evidence(lost=1)),
        ([(200, "installed"), (150, "cancelled")], Evidence(not_installed=1)),
        ([(97, "installed"), (20, "confirmed")], Evidence(confirmed=1, confirmed_and_settled=1)),
        ([(20, "installed"), (19, "confirmed")], Evidence(confirmed=1)),
        # A lost report, kept on the device until the network was back.
        ([(200, "installed"), (200, "restarting"), (1, "confirmed")], Evidence(confirmed=1, confirmed_and_settled=1)),
    ],
)
def test_the_reports_of_one_update_count_as_its_end(reports: _Reports, told: list[_Told], expected: Evidence) -> None:
    reports.update(*told)

    assert reports.evidence() == expected


def test_within_a_second_a_device_that_announced_its_restart_waits_when_it_says_so(reports: _Reports) -> None:
    for told in itertools.permutations([(5.0, "installed"), (5.0, "restarting"), (5.0, "waiting")]):
        reports.update(*told)
    for told in itertools.permutations([(5.0, "installed"), (5.0, "restarting")]):
        reports.update(*told)

    assert reports.evidence() == Evidence(open=6, lost=2)


def test_updates_add_up(reports: _Reports) -> None:
    kinds: list[list[_Told]] = [
        [(5, "restarting"), (4.9, "confirmed")],
        [(5, "restarting")],
        [(5, "rolled-back")],
        [(1, "restarting")],
        [(1, "failed")],
    ]
    chosen = random.Random(4).choices(kinds, k=100)
    for told in chosen:
        reports.update(*told)

    numbers = [chosen.count(kind) for kind in kinds]
    assert reports.evidence() == Evidence(
        confirmed=numbers[0],
        confirmed_and_settled=numbers[0],
        lost=numbers[1],
        rolled_back=numbers[2],
        open=numbers[3],
        not_installed=numbers[4],
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"product": "beta"},
        {"variant": "tablet"},
        {"arch": "arm64"},
        {"channel": "beta"},
        {"to_version": "1.2"},
        {"to_build_id": "b3"},
    ],
)
def test_reports_of_other_releases_and_channels_do_not_count(reports: _Reports, changes: dict[str, str | None]) -> None:
    reports.update((5, "restarting"), changes=changes)

    assert reports.evidence() == Evidence()


def test_reports_that_belong_to_no_update_do_not_count(reports: _Reports) -> None:
    reports.update((5, "restarting"), linked=False)
    reports.update((1, "checked"), linked=False, changes={"to_version": None, "to_build_id": None})

    assert reports.evidence() == Evidence()


def test_updates_begun_earlier_do_not_count_even_when_they_end_later(reports: _Reports) -> None:
    reports.update((50, "installed"), (5, "restarting"))
    reports.update((40, "restarting"))

    assert reports.evidence(since=NOW - 45 * HOUR_S) == Evidence(lost=1)


def test_check_ins_do_not_push_out_how_updates_ended(reports: _Reports) -> None:
    reports.update((50, "installed"), (50, "restarting"))
    for number in range(40):
        told = (40 - number / 10, "checked")
        reports.update(told, linked=False, changes={"to_version": None, "to_build_id": None})

    assert reports.prune(keep_at_most=20) == 30
    assert reports.evidence() == Evidence(lost=1)
    assert reports.prune(keep_at_most=20) == 0
