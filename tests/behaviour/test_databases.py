"""What the server may count on, whichever database it was given: SQLite in a file, or a real PostgreSQL."""

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy
from tests.postgresql import postgresql
from tests.waiting import PATIENCE_S

from overhaul.server.database import migrating
from overhaul.server.database.engine import Database, DatabaseFailedError, sqlite_url
from overhaul.server.reports import DeviceReport, Outcome, ReportStore


def _report(number: int, **changes: object) -> DeviceReport:
    fields: dict[str, object] = {
        "report_id": f"{number:032x}",
        "product": "alpha",
        "variant": "desk",
        "arch": "amd64",
        "channel": "stable",
        "from_version": "1.0",
        "from_build_id": "b1",
        "to_version": "1.1",
        "to_build_id": "b2",
        "outcome": "installed",
        "bytes_received": 1000 * number,
        "requests": 3,
        "seconds": float(number),
    }
    return DeviceReport.model_validate(fields | changes)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        yield sqlite_url(tmp_path_factory.mktemp("database") / "below" / "reports.sqlite3")
    else:
        with postgresql() as address:
            yield address


@pytest.fixture
def empty(url: str) -> Iterator[Database]:
    database = Database(url)
    migrating.downgrade(database)
    yield database
    database.close()


@pytest.fixture
def store(empty: Database) -> ReportStore:
    migrating.upgrade(empty)
    return ReportStore(empty)


def test_an_upgrade_leaves_exactly_the_tables_the_code_works_with(empty: Database) -> None:
    assert migrating.revision_of(empty) is None

    migrating.upgrade(empty)
    migrating.upgrade(empty)

    assert migrating.revision_of(empty) == migrating.newest_revision()
    assert migrating.differences(empty) == []


def test_a_downgrade_takes_everything_away_and_the_way_back_up_is_open(empty: Database) -> None:
    migrating.upgrade(empty)
    migrating.downgrade(empty)

    assert sqlalchemy.inspect(empty.engine).get_table_names() == ["alembic_version"]
    migrating.upgrade(empty)
    assert migrating.differences(empty) == []


def test_a_database_of_a_newer_overhaul_is_refused_and_left_alone(empty: Database) -> None:
    migrating.upgrade(empty)
    with empty.writing() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = 'r9999'"))

    with pytest.raises(migrating.NewerDatabaseError, match="r9999"):
        migrating.upgrade(empty)

    with empty.writing() as connection:
        newest = {"newest": migrating.newest_revision()}
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = :newest"), newest)


def _upgrade_in_a_process(url: str) -> None:
    database = Database(url)
    migrating.upgrade(database)
    database.close()


def test_server_processes_that_start_together_upgrade_once(empty: Database, url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_upgrade_in_a_process, args=(url,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert migrating.revision_of(empty) == migrating.newest_revision()


def test_an_upgrade_waits_longer_for_another_than_a_request_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server process that gave up would have to be started again by hand."""
    monkeypatch.setattr("overhaul.server.database.engine._BUSY_TIMEOUT_MS", 1)
    other, database = (Database(sqlite_url(tmp_path / "reports.sqlite3")) for _ in range(2))
    begins = threading.Event()

    def look(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if statement.startswith("BEGIN"):
            begins.set()

    with ThreadPoolExecutor(1) as pool:
        with other.writing():
            with pytest.raises(DatabaseFailedError, match="locked"), database.writing():
                pass
            sqlalchemy.event.listen(database.engine, "before_cursor_execute", look)
            upgrade = pool.submit(migrating.upgrade, database)
            assert begins.wait(PATIENCE_S)
            with pytest.raises(TimeoutError):
                upgrade.result(timeout=0.5)
        upgrade.result(timeout=PATIENCE_S)

    assert migrating.revision_of(database) == migrating.newest_revision()
    with database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 1
    database.close()
    other.close()


def test_a_failed_write_leaves_nothing(store: ReportStore, empty: Database) -> None:
    def insert_and_fail() -> None:
        with empty.writing() as connection:
            connection.execute(sqlalchemy.text("DELETE FROM device_reports"))
            raise KeyError

    store.add(_report(1), now=100)
    with pytest.raises(KeyError):
        insert_and_fail()

    assert len(store.recent(limit=10)) == 1


def test_a_report_comes_back_as_it_was_given(store: ReportStore) -> None:
    reports = [_report(1), _report(2, to_version=None, to_build_id=None, outcome="failed", error="UnreachableError")]
    for at, report in enumerate(reports):
        assert store.add(report, now=100 + at)

    assert [(stored.received_at, stored.report) for stored in store.recent(limit=10)] == [
        (101, reports[1]),
        (100, reports[0]),
    ]
    assert len(store.recent(limit=1)) == 1


def test_the_same_report_again_changes_nothing(store: ReportStore) -> None:
    assert store.add(_report(1), now=100)
    assert not store.add(_report(1, outcome="failed"), now=200)

    (stored,) = store.recent(limit=10)
    assert (stored.received_at, stored.report.outcome) == (100, Outcome.INSTALLED)


def test_a_summary_counts_what_was_received_since(store: ReportStore) -> None:
    store.add(_report(1), now=50)
    received: list[dict[str, object]] = [
        {"bytes_received": 100, "seconds": 1.0},
        {"bytes_received": 300, "seconds": 2.0},
        {"outcome": "rolled-back", "bytes_received": 0},
        {"outcome": "failed", "error": "UnreachableError"},
        {"outcome": "checked", "to_version": None, "to_build_id": None},
        {"outcome": "confirmed", "to_version": "1.10", "to_build_id": "b9"},
    ]
    for number, changes in enumerate(received, start=2):
        store.add(_report(number, **changes), now=100)

    summary = store.summary(since=100)

    assert summary.total == 6
    told = {outcome: count for outcome, count in summary.outcomes.items() if count}
    assert told == {"checked": 1, "installed": 2, "confirmed": 1, "rolled-back": 1, "failed": 1}
    assert summary.errors == {"UnreachableError": 1}
    older, newer = summary.releases
    assert (older.version, newer.version) == ("1.1", "1.10")
    assert older.outcomes == {"installed": 2, "rolled-back": 1, "failed": 1}
    assert (older.mean_bytes_received, older.mean_seconds) == (200, 1.5)
    assert newer.mean_bytes_received is None


def test_old_reports_and_the_oldest_of_too_many_are_removed(store: ReportStore) -> None:
    for number in range(10):
        store.add(_report(number), now=100 + number)

    assert store.prune(before=103, keep_at_most=100) == 3
    assert store.prune(before=0, keep_at_most=4) == 3
    assert [stored.received_at for stored in store.recent(limit=10)] == [109, 108, 107, 106]
    assert store.prune(before=0, keep_at_most=4) == 0


def test_a_database_that_cannot_be_reached_is_named_without_its_password() -> None:
    database = Database("postgresql://someone:secret@127.0.0.1:1/nothing")
    with pytest.raises(DatabaseFailedError, match="someone") as refusal:
        migrating.upgrade(database)

    assert "secret" not in str(refusal.value)
    for address in ("nonsense", "mysql://user:secret@host/name"):
        with pytest.raises(DatabaseFailedError) as refusal:
            Database(address)
        assert "secret" not in str(refusal.value)


def test_sqlite_is_opened_the_way_several_processes_need_it(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "reports.sqlite3"))
    with database.reading() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        }
    database.close()

    assert settings == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 10_000}
