"""Operators, their sessions and the history of the fleet, in SQLite and in a real PostgreSQL."""

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy
from tests.postgresql import postgresql

from overhaul.release.names import UnusableNameError
from overhaul.release.record import ReleaseId
from overhaul.server.database import migrating
from overhaul.server.database.engine import Database, sqlite_url
from overhaul.server.database.tables import LOGIN_ATTEMPTS, METADATA, OPERATOR_SESSIONS, OPERATORS
from overhaul.server.exposure import Exposure, ExposureHistory
from overhaul.server.operators.accounts import DuplicateOperatorError, Operators, Role, UnknownOperatorError
from overhaul.server.operators.guessing import PER_ACCOUNT, PER_ADDRESS, WINDOW_S, Guessing
from overhaul.server.operators.passwords import WeakPasswordError
from overhaul.server.operators.sessions import MAX_SESSIONS, Sessions, form_token_matches
from overhaul.server.reports import DeviceReport, ReportStore
from overhaul.server.statistics import Chosen, FleetStatistics, Group, below
from overhaul.server.views import ChannelView, EntryState, EntryView
from overhaul.server.volume import Served, ServedHours

PASSWORD = "a sentence nobody else would write"
NOW = 1_800_000_000
RELEASE = ReleaseId(product="kiosk", variant="shop", arch="amd64", version="1.1", build_id="b2")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        made = Database(sqlite_url(tmp_path_factory.mktemp("operators") / "server.sqlite3"))
        migrating.upgrade(made)
        yield made
        made.close()
        return
    with postgresql() as url:
        made = Database(url)
        migrating.upgrade(made)
        yield made
        made.close()


@pytest.fixture
def database(opened: Database) -> Database:
    with opened.writing() as connection:
        for table in METADATA.sorted_tables:
            connection.execute(table.delete())
    return opened


@pytest.fixture
def sessions(database: Database) -> Sessions:
    with database.writing() as connection:
        connection.execute(
            OPERATORS.insert().values(name="ada", role="operator", password_hash="scrypt$1$1$1$00$00", changed_at=0)
        )
    return Sessions(database, idle_s=1800, longest_s=43200)


def test_an_operator_is_known_by_the_password_alone(database: Database) -> None:
    operators = Operators(database, clock=lambda: NOW)
    made = operators.add("ada", role=Role.OPERATOR, password=PASSWORD)

    assert operators.check("ada", PASSWORD) == made
    assert operators.check("ada", PASSWORD.upper()) is None
    assert operators.check("bob", PASSWORD) is None
    with database.reading() as connection:
        kept = connection.execute(sqlalchemy.select(OPERATORS.c.password_hash)).scalar_one()
    assert kept.startswith("scrypt$32768$8$3$")
    assert PASSWORD not in kept


def test_somebody_whom_a_provider_vouches_for_has_no_password_that_fits(database: Database) -> None:
    operators = Operators(database)
    assert not operators.add("eve", role=Role.VIEWER, password=None).has_password
    assert operators.check("eve", "") is None
    assert operators.check("eve", PASSWORD) is None


def test_weak_passwords_bad_names_and_twins_are_refused(database: Database) -> None:
    operators = Operators(database)
    for password in ("short", "aaaaaaaaaaaaaaaa", "x" * 2000):
        with pytest.raises(WeakPasswordError):
            operators.add("ada", role=Role.VIEWER, password=password)
    with pytest.raises(WeakPasswordError):
        operators.add("adalovelace", role=Role.VIEWER, password="adalovelace12")
    with pytest.raises(UnusableNameError):
        operators.add("../ada", role=Role.VIEWER, password=None)
    operators.add("ada", role=Role.VIEWER, password=None)
    with pytest.raises(DuplicateOperatorError):
        operators.add("ada", role=Role.OPERATOR, password=None)
    with pytest.raises(UnknownOperatorError):
        operators.remove("bob")


def test_a_session_ends_unused_in_any_case_and_when_the_clock_was_set_back(sessions: Sessions) -> None:
    token = sessions.begin("ada", now=NOW)
    found = sessions.find(token, now=NOW)
    assert found is not None
    assert (found.operator, found.role) == ("ada", Role.OPERATOR)
    assert sessions.find(token, now=NOW + 1799) is not None
    assert sessions.find(token, now=NOW + 1799 + 1799) is not None
    assert sessions.find(token, now=NOW + 1799 + 1799 + 1800) is None
    assert sessions.find(token, now=NOW - 50_000) is None

    token = sessions.begin("ada", now=NOW)
    for later in range(0, 43_200, 1700):
        assert sessions.find(token, now=NOW + later) is not None
    assert sessions.find(token, now=NOW + 43_200) is None
    assert sessions.find("", now=NOW) is None


def test_the_database_holds_nothing_that_signs_in(sessions: Sessions, database: Database) -> None:
    token = sessions.begin("ada", now=NOW)
    with database.reading() as connection:
        (kept,) = connection.execute(sqlalchemy.select(OPERATOR_SESSIONS.c.token_sha256)).scalars()
    assert token not in kept
    assert sessions.find(kept, now=NOW) is None


@pytest.mark.parametrize("change", ["password", "role", "removal"])
def test_changing_an_operator_ends_their_sessions_and_nobody_elses(
    sessions: Sessions, database: Database, change: str
) -> None:
    operators = Operators(database)
    operators.add("bob", role=Role.VIEWER, password=None)
    hers, his = sessions.begin("ada", now=NOW), sessions.begin("bob", now=NOW)
    {
        "password": lambda: operators.set_password("ada", PASSWORD),
        "role": lambda: operators.set_role("ada", Role.VIEWER),
        "removal": lambda: operators.remove("ada"),
    }[change]()

    assert sessions.find(hers, now=NOW) is None
    assert sessions.find(his, now=NOW) is not None


def test_the_oldest_session_makes_room_and_an_ended_one_is_gone(sessions: Sessions) -> None:
    tokens = [sessions.begin("ada", now=NOW + number) for number in range(MAX_SESSIONS + 1)]
    assert sessions.find(tokens[0], now=NOW + 20) is None
    assert all(sessions.find(token, now=NOW + 20) for token in tokens[1:])
    sessions.end(tokens[5])
    assert sessions.find(tokens[5], now=NOW + 20) is None


def test_a_form_belongs_to_one_session(sessions: Sessions) -> None:
    one, other = sessions.begin("ada", now=NOW), sessions.begin("ada", now=NOW)
    found = sessions.find(one, now=NOW)
    assert found is not None
    assert form_token_matches(found.form_token, one)
    assert not form_token_matches(found.form_token, other)
    assert not form_token_matches("", one)
    assert not form_token_matches("ä", one)


def test_guesses_are_counted_per_account_and_per_address_also_side_by_side(database: Database) -> None:
    guessing = Guessing(database)
    allowed: list[str] = []

    def guess() -> None:
        identity, _wait = guessing.attempt(account="ada", address="192.0.2.1", now=NOW)
        if identity:
            allowed.append(identity)

    threads = [threading.Thread(target=guess) for _ in range(PER_ACCOUNT + 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(allowed) == PER_ACCOUNT

    assert guessing.attempt(account="ada", address="192.0.2.99", now=NOW + 10) == ("", WINDOW_S - 10)
    for number in range(PER_ADDRESS - PER_ACCOUNT):
        assert guessing.attempt(account=f"other-{number}", address="192.0.2.1", now=NOW)[0]
    assert guessing.attempt(account="more", address="192.0.2.1", now=NOW)[0] == ""
    assert guessing.attempt(account="ada", address="192.0.2.1", now=NOW + WINDOW_S)[0]


def test_one_owner_of_many_addresses_is_one_sender_and_success_forgets_the_account(database: Database) -> None:
    guessing = Guessing(database)
    for number in range(PER_ADDRESS):
        assert guessing.attempt(account=f"a{number}", address=f"2001:db8::{number:x}", now=NOW)[0]
    assert guessing.attempt(account="b", address="2001:db8::ffff", now=NOW)[0] == ""
    assert guessing.attempt(account="b", address="2001:db8:0:1::1", now=NOW)[0]
    guessing.succeeded(account="b")
    with database.reading() as connection:
        names = set(connection.execute(sqlalchemy.select(LOGIN_ATTEMPTS.c.account)).scalars())
    assert "b" not in names
    assert "a0" in names


def test_bytes_of_an_hour_add_up_and_old_hours_go(database: Database) -> None:
    served = ServedHours(database)
    hour = NOW - NOW % 3600
    served.add({("content", RELEASE): [100, 1]}, now=NOW)
    served.add({("content", RELEASE): [50, 2], ("poll", _nobody()): [0, 7]}, now=NOW + 1)
    served.add({("content", RELEASE): [9, 1]}, now=NOW + 3600)
    served.add({}, now=NOW)

    assert served.read(since=NOW, product="kiosk") == (
        Served(hour=hour, route="content", release=RELEASE, bytes=150, requests=3),
        Served(hour=hour + 3600, route="content", release=RELEASE, bytes=9, requests=1),
    )
    assert [each.requests for each in served.read(since=NOW, route="poll")] == [7]
    assert served.prune(before=hour + 1) == 2
    assert [each.bytes for each in served.read(since=NOW)] == [9]
    served.add({("content", RELEASE): [1, 1]}, now=NOW + 7200)
    assert served.prune(before=0, keep_at_most=1) == 1
    assert [each.bytes for each in served.read(since=NOW)] == [1]


def _nobody() -> ReleaseId:
    return ReleaseId(product="", variant="", arch="", version="", build_id="")


def _channel(percent: float, state: EntryState = EntryState.ROLLING_OUT) -> ChannelView:
    entry = EntryView(
        variant="shop", arch="amd64", version="1.1", build_id="b2", state=state, percent=percent, steps=(),
        checkpoint=False, urgent=False, requires=None, hardware=(), recall=None, halted="", notes_url="",
    )  # fmt: skip
    return ChannelView(product="kiosk", channel="stable", revision=2, signed_at=NOW, floors=(), entries=(entry,))


def test_an_exposure_is_written_down_when_it_changes_by_whatever_worker(database: Database) -> None:
    place = ("kiosk", "stable", "shop", "amd64", "1.1", "b2")
    one, other = ExposureHistory(database), ExposureHistory(database)
    assert one.record([_channel(5)], now=NOW) == 1
    assert other.record([_channel(5)], now=NOW + 3) == 0
    assert other.record([_channel(25)], now=NOW + 60) == 1
    assert one.record([_channel(25)], now=NOW + 61) == 0
    assert one.record([_channel(0, EntryState.RECALLED)], now=NOW + 120) == 1

    assert one.read(since=0)[place] == (
        Exposure(at=NOW, percent=5.0, state="rolling-out"),
        Exposure(at=NOW + 60, percent=25.0, state="rolling-out"),
        Exposure(at=NOW + 120, percent=0.0, state="recalled"),
    )
    assert [each.percent for each in one.read(since=NOW + 90, product="kiosk", channel="stable")[place]] == [25, 0]
    assert one.read(since=0, product="other") == {}
    assert one.prune(before=NOW + 100) == 1, "the last one before the time still says where the plot begins"
    assert [each.percent for each in one.read(since=0)[place]] == [25, 0]


def _confirmed(
    store: ReportStore, number: int, left: str, reached: str, *, at: int, outcome: str = "confirmed"
) -> None:
    report = DeviceReport.model_validate(
        {
            "report_id": f"{number:032x}", "product": "kiosk", "variant": "shop", "arch": "amd64", "channel": "stable",
            "from_version": left, "from_build_id": "b", "to_version": reached, "to_build_id": "b", "outcome": outcome,
            "error": "UnreachableError" if outcome == "failed" else None,
        }
    )  # fmt: skip
    assert store.add(report, now=at)


def test_who_runs_what_is_worked_out_from_who_came_and_who_left(database: Database) -> None:
    store, statistics = ReportStore(database), FleetStatistics(database)
    for number in range(10):
        _confirmed(store, number, "0.9", "1.0", at=NOW)
    for number in range(10, 14):
        _confirmed(store, number, "1.0", "1.10", at=NOW + 90_000)
    _confirmed(store, 20, "1.0", "1.10", at=NOW + 90_000, outcome="rolled-back")
    _confirmed(store, 21, "1.0", "1.10", at=NOW + 90_000, outcome="failed")
    _confirmed(store, 22, "1.0", "1.10", at=NOW + 90_000, outcome="failed")

    (population,) = statistics.population(product="kiosk").items()
    assert population == (
        Group(product="kiosk", channel="stable", variant="shop", arch="amd64"),
        {("1.0", "b"): 6, ("1.10", "b"): 4},
    )
    assert below(population[1], version="1.10", build_id="b") == 6
    assert below(population[1], version="1.9", build_id="b") == 6
    assert below(population[1], version="2.0", build_id="b") == 10
    chosen = Chosen(since=NOW, product="kiosk", channel="stable")
    day = NOW - NOW % 86400
    assert statistics.outcomes(chosen, bucket_s=86400) == {
        day: {"confirmed": 10},
        day + 86400: {"confirmed": 4, "rolled-back": 1, "failed": 2},
    }
    assert statistics.reasons(chosen) == (("failed", "UnreachableError", 2), ("rolled-back", "", 1))
    assert statistics.arrivals(chosen, bucket_s=86400)["kiosk", "1.10", "b"] == {day + 86400: 4}
    assert statistics.population(product="other") == {}
