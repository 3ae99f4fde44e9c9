"""The desk: it believes nothing it is told, does what the commands do, and writes everything down."""

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.published import PublishedRepository

from overhaul.policy.rollout import Rollout
from overhaul.server.database.engine import Database, sqlite_url
from overhaul.server.database.migrating import upgrade
from overhaul.server.operators.accounts import Operators, Role
from overhaul.server.operators.acts import Act, ActKind
from overhaul.server.operators.audit import AuditLog
from overhaul.server.operators.desk import Desk, DeskUnreachableError, Done, Order, hand_in
from overhaul.server.operators.sessions import Sessions


class Scene:
    """A repository with one release, two operators and their desk."""

    def __init__(self, directory: Path) -> None:
        self.published = PublishedRepository(directory / "repository")
        self.published.publish("1.0", "b1", rollout_percent=5)
        self.database = Database(sqlite_url(directory / "server.sqlite3"))
        upgrade(self.database)
        operators = Operators(self.database)
        operators.add("ada", role=Role.OPERATOR, password=None)
        operators.add("vic", role=Role.VIEWER, password=None)
        self.sessions = Sessions(self.database, idle_s=600, longest_s=3600)
        self.audit = AuditLog(directory / "audit.jsonl")
        self.desk = Desk(
            lambda: self.published.repository, sessions=self.sessions, audit=self.audit, clock=self.published.clock
        )

    def order(self, operator: str = "ada", *, kind: ActKind = ActKind.ROLLOUT, **changes: object) -> Order:
        fields: dict[str, object] = {
            "kind": kind, "product": "alpha", "variant": "desk", "arch": "amd64", "version": "1.0", "build_id": "b1",
            "channel": "stable", "revision": 2, "percent": 50,
        }  # fmt: skip
        token = self.sessions.begin(operator, now=int(self.published.now))
        return Order(act=msgspec.convert(fields | changes, Act), session=token, address="192.0.2.1")

    @property
    def rollout(self) -> Rollout | None:
        (entry,) = self.published.repository.published().policies["alpha/policy/stable.json"].entries
        return entry.rollout


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.database.close()


def test_an_order_is_carried_out_signed_and_written_down(scene: Scene) -> None:
    done = scene.desk.perform(scene.order())
    assert done == Done(done=True, changed=True, revision=3)
    assert scene.rollout == Rollout(percent=50)
    (record,) = scene.audit.recent(limit=9)
    assert (record.operator, record.address, record.act, record.result) == ("ada", "192.0.2.1", "rollout", "done")
    assert record.subject == "alpha/desk/amd64/1.0/b1 in stable"
    assert record.details == "5 % → 50 %, revision 3"


def test_without_a_session_of_an_operator_nothing_is_done(scene: Scene) -> None:
    ended = scene.order()
    scene.sessions.end(ended.session)
    old = scene.order()
    for order, problem in ((ended, "session has ended"), (scene.order("vic"), "may look and not change")):
        done = scene.desk.perform(order)
        assert (done.done, done.status) == (False, 403)
        assert problem in done.problem
        assert problem in scene.audit.recent(limit=1)[0].result
    scene.published.now += 601
    assert "session has ended" in scene.desk.perform(old).problem
    assert scene.rollout == Rollout(percent=5)


def test_what_cannot_be_written_down_does_not_happen(scene: Scene) -> None:
    scene.audit.path.mkdir()
    done = scene.desk.perform(scene.order())
    assert not done.done
    assert "audit log" in done.problem
    assert scene.rollout == Rollout(percent=5)


def test_without_the_policy_key_it_is_said_which_one_is_missing(scene: Scene) -> None:
    (scene.published.repository.keys_directory / "alpha-policy-1.pem").unlink()
    done = scene.desk.perform(scene.order())
    assert not done.done
    assert "alpha-policy" in done.problem
    assert scene.audit.recent(limit=1)[0].result == done.problem
    assert scene.rollout == Rollout(percent=5)


def test_a_repository_in_use_is_told_and_left_alone(scene: Scene) -> None:
    with scene.published.repository.locked("publish"):
        done = scene.desk.perform(scene.order())
    assert (done.done, done.status) == (False, 409)
    assert "is in use by `overhaul publish`" in done.problem
    assert scene.desk.perform(scene.order()).done


def test_a_bug_ends_one_order_and_not_the_desk(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(lambda: 1 // 0, sessions=scene.sessions, audit=scene.audit, clock=scene.published.clock)  # type: ignore[arg-type,return-value]
    done = desk.perform(scene.order())
    assert (done.done, done.status) == (False, 500)
    assert "ZeroDivisionError" not in done.problem
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("question", [b"", b"{", b"[]", b"\xff", b"{}", b"[" * 100_000])
def test_what_is_no_order_is_answered_as_such(scene: Scene, question: bytes) -> None:
    done = msgspec.json.decode(scene.desk.answer(question), type=Done)
    assert (done.done, done.status) == (False, 400)


def test_orders_go_through_its_socket_and_an_absent_desk_is_named(scene: Scene, tmp_path: Path) -> None:
    answering = scene.desk.answering(tmp_path / "desk/socket")
    thread = threading.Thread(target=answering.run)
    thread.start()
    try:
        assert hand_in(tmp_path / "desk/socket", scene.order()).revision == 3
    finally:
        answering.stop()
        thread.join()
    with pytest.raises(DeskUnreachableError, match="overhaul operator desk"):
        hand_in(tmp_path / "desk/socket", scene.order())
