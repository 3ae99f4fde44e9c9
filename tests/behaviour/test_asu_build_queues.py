"""What every queue of builds promises: in memory, on SQLite, on a real PostgreSQL, and with Procrastinate on it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from tests.postgresql import postgresql

from overhaul.builds import database as tables
from overhaul.builds import distributed
from overhaul.builds.leasing import LeaseQueue
from overhaul.builds.memory import MemoryQueue
from overhaul.builds.queue import (
    BuildQueue,
    ClientLimitError,
    LostLeaseError,
    QueueFullError,
    Submitted,
    UnknownBuildError,
)
from overhaul.builds.recipe import Recipe
from overhaul.builds.records import BuildState, Lease, QueueLimits
from overhaul.builds.results import BuildFailure, BuildResult, FailureKind, Phase
from overhaul.server.database.engine import Database, sqlite_url

LIMITS = QueueLimits(waiting=12, waiting_of_client=5, lease_s=60.0, attempts=3, log_characters=20)
RESULT = BuildResult(
    artefact="a1",
    files=(),
    images=(),
    manifest={"vim": "9.1-1"},
    manifest_sha256="0" * 64,
    builder_digest="1" * 64,
    document={"id": "generic", "nested": {"list": [1, "two"]}},
    command=("make", "image"),
    command_packages=("vim",),
    stdout="built\n",
    stderr="",
    build_seconds=1.5,
    built_at=1000.0,
)
FAILURE = BuildFailure(kind=FailureKind.IMPOSSIBLE_PACKAGES, detail="Impossible", missing=("nope",), stderr="no\0")


class Clock:
    """A time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def recipe(*packages: str, builder: str = "openwrt", **changes: object) -> Recipe:
    base = Recipe(
        builder=builder,
        distribution="openwrt",
        version="23.05.5",
        target="x86/64",
        profile="generic",
        packages=packages,
    )
    return msgspec.convert({**msgspec.to_builtins(base), **changes}, Recipe, strict=False)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite", "postgresql", "procrastinate"])
def queue(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[BuildQueue]:
    if request.param == "memory":
        yield MemoryQueue(limits=LIMITS, clock=clock)
        return
    url = sqlite_url(tmp_path / "q.sqlite3") if request.param == "sqlite" else request.getfixturevalue("address")
    with _opened(request.param, url, clock) as opened:
        yield opened


class _opened:  # noqa: N801 - used as a function
    """An empty queue in the database at `url`."""

    def __init__(self, kind: str, url: str, clock: Callable[[], float] | None, limits: QueueLimits = LIMITS) -> None:
        self.database = Database(url)
        tables.downgrade(self.database)
        self.queue: LeaseQueue
        if kind == "procrastinate":
            distributed.upgrade(self.database)
            self.queue = distributed.ProcrastinateQueue(self.database, address=url, limits=limits, clock=clock)
        else:
            tables.upgrade(self.database)
            self.queue = LeaseQueue(self.database, limits=limits, clock=clock)

    def __enter__(self) -> LeaseQueue:
        return self.queue

    def __exit__(self, *_: object) -> None:
        if isinstance(self.queue, distributed.ProcrastinateQueue):
            self.queue.close()
        tables.downgrade(self.database)
        self.database.close()


def _submit(queue: BuildQueue, *packages: str, client: str = "c1", name: str | None = None) -> Submitted:
    wanted = recipe(*packages)
    return queue.submit(wanted, names=[name or wanted.key[:12]], client=client, client_label="owut/1")


def _lease(queue: BuildQueue, worker: str = "w1") -> Lease:
    lease = queue.lease(worker=worker, builders=["openwrt"])
    assert lease is not None
    return lease


def test_a_build_goes_through_its_life(queue: BuildQueue, clock: Clock) -> None:
    submitted = _submit(queue, "vim", name="ab12")
    build = submitted.build
    assert (submitted.is_new, submitted.name, build.name, build.state) == (True, "ab12", "ab12", BuildState.QUEUED)
    assert (build.client, build.client_label, build.enqueued_at) == ("c1", "owut/1", clock.now)
    assert queue.waiting() == 1

    clock.now += 5
    lease = _lease(queue)
    assert (lease.build.state, lease.build.started_at, lease.build.attempts) == (BuildState.STARTED, clock.now, 1)
    assert queue.waiting() == 0
    assert queue.renew(lease, phase=Phase.BUILDING_IMAGE).build.phase is Phase.BUILDING_IMAGE
    assert queue.find(build.build_id).worker == "w1"

    clock.now += 5
    done = queue.finish(lease, RESULT)

    assert (done.state, done.phase, done.finished_at) == (BuildState.FINISHED, Phase.DONE, clock.now)
    found = queue.find_named("ab12")
    assert found == queue.find(build.build_id) == queue.find_recipe(recipe("vim")) == done
    assert found is not None
    assert found.result == RESULT
    assert found.recipe == recipe("vim")


def test_equal_requests_become_one_build(queue: BuildQueue) -> None:
    first = _submit(queue, "vim", "tmux", client="c1", name="n1")
    second = _submit(queue, "tmux", "vim", client="c2", name="n2")
    lease = _lease(queue)
    third = _submit(queue, "vim", "tmux", client="c3", name="n1")
    queue.finish(lease, RESULT)
    fourth = _submit(queue, "vim", "tmux", client="c4", name="n4")

    assert [one.is_new for one in (first, second, third, fourth)] == [True, False, False, False]
    assert {one.build.build_id for one in (first, second, third, fourth)} == {first.build.build_id}
    assert fourth.build.result == RESULT
    assert queue.find(first.build.build_id).requests == 4
    for name in ("n1", "n2", "n4"):
        named = queue.find_named(name)
        assert named is not None
        assert named.build_id == first.build.build_id


def test_many_at_once_for_one_recipe_make_one_build(queue: BuildQueue) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: _submit(queue, "vim", client=f"c{number}"), range(16)))

    assert sum(answer.is_new for answer in answers) == 1
    assert len({answer.build.build_id for answer in answers}) == 1
    assert queue.find(answers[0].build.build_id).requests == 16


def test_a_name_never_leads_to_another_recipe(queue: BuildQueue) -> None:
    """CVE-2024-54143: with a short hash as the key, the second request was answered with the first one's image."""
    mine = queue.submit(recipe("vim"), names=["ab12", "ab12ff"], client="attacker")
    lease = _lease(queue)
    queue.finish(lease, RESULT)

    yours = queue.submit(recipe("emacs"), names=["ab12", "ab12ee"], client="victim")
    none_left = queue.submit(recipe("nano"), names=["ab12", "ab12ff", "ab12ee"], client="victim")

    assert (mine.name, yours.name) == ("ab12", "ab12ee")
    assert yours.is_new
    assert yours.build.result is None
    assert none_left.name in {"ab12ff", recipe("nano").key}
    assert none_left.build.recipe == recipe("nano")
    named = queue.find_named("ab12")
    assert named is not None
    assert named.recipe == recipe("vim")
    assert not queue.bind("ab12", yours.build.recipe_key)
    assert queue.bind("more", yours.build.recipe_key)
    assert queue.bind("more", yours.build.recipe_key)
    bound = queue.find_named("more")
    assert bound is not None
    assert bound.recipe == recipe("emacs")
    assert queue.find_named("unknown") is None
    assert queue.find_recipe(recipe("other")) is None


def test_turns_go_round_the_clients(queue: BuildQueue) -> None:
    for number in range(4):
        _submit(queue, f"greedy{number}", client="greedy")
    modest = _submit(queue, "modest", client="modest")
    late = _submit(queue, "late", client="late")

    assert queue.position(modest.build.build_id) == 1
    assert queue.position(late.build.build_id) == 2
    order = []
    for _ in range(6):
        lease = _lease(queue)
        order.append(lease.build.recipe.packages[0])
        queue.finish(lease, RESULT)
    assert order == ["greedy0", "modest", "late", "greedy1", "greedy2", "greedy3"]
    assert queue.position(modest.build.build_id) == 0


def test_who_comes_back_later_does_not_overtake_those_that_wait(queue: BuildQueue) -> None:
    for number in range(3):
        _submit(queue, f"a{number}", client="a")
    for _ in range(2):
        queue.finish(_lease(queue), RESULT)
    _submit(queue, "b0", client="b")
    _submit(queue, "b1", client="b")

    order = []
    for _ in range(3):
        lease = _lease(queue)
        order.append(lease.build.recipe.packages[0])
        queue.finish(lease, RESULT)
    assert order == ["b0", "a2", "b1"]


def test_only_builds_that_a_worker_can_make_are_leased(queue: BuildQueue) -> None:
    queue.submit(recipe("vim", builder="debian"), names=["n"], client="c")

    assert queue.lease(worker="w", builders=["openwrt"]) is None
    assert queue.lease(worker="w", builders=[]) is None
    lease = queue.lease(worker="w", builders=["openwrt", "debian"])
    assert lease is not None
    assert lease.build.recipe.builder == "debian"


def test_limits_refuse_before_anything_is_stored(queue: BuildQueue) -> None:
    for number in range(5):
        _submit(queue, f"p{number}", client="c1")
    with pytest.raises(ClientLimitError):
        _submit(queue, "sixth", client="c1", name="sixth")
    for number in range(7):
        _submit(queue, f"q{number}", client=f"d{number}")
    with pytest.raises(QueueFullError) as refusal:
        _submit(queue, "thirteenth", client="e")

    assert (refusal.value.waiting, refusal.value.limit, refusal.value.http_status) == (12, 12, 503)
    assert queue.waiting() == 12
    assert queue.find_named("sixth") is None
    # What is known already costs no place.
    assert not _submit(queue, "p0", client="c1").is_new


def test_ends_answer_for_as_long_as_their_kind_does(queue: BuildQueue, clock: Clock) -> None:
    day_s = 86400.0
    kinds: dict[str, tuple[Recipe, BuildResult | BuildFailure, float]] = {
        "plain": (recipe("plain"), RESULT, day_s),
        "defaults": (recipe("d", defaults="echo"), RESULT, 1800.0),
        "versions": (recipe(package_versions=(("vim", "1"),)), RESULT, 7 * day_s),
        "failure": (recipe("failed"), FAILURE, 3600.0),
    }
    for name, (wanted, end, _lifetime) in kinds.items():
        queue.submit(wanted, names=[name], client=name)
        queue.finish(_lease(queue), end)
    start = clock.now

    for name, (wanted, _end, lifetime) in kinds.items():
        clock.now = start + lifetime - 1
        assert not queue.submit(wanted, names=[name], client=name).is_new
        clock.now = start + lifetime
        again = queue.submit(wanted, names=[name], client=name)
        assert again.is_new
        assert again.name == name
        queue.cancel(again.build.build_id)


def test_a_failure_is_kept_with_all_it_says(queue: BuildQueue) -> None:
    _submit(queue, "nope", name="n")
    done = queue.finish(_lease(queue), FAILURE)

    assert (done.state, done.phase, done.result) == (BuildState.FAILED, Phase.FAILED, None)
    found = queue.find_named("n")
    assert found is not None
    assert found.failure == FAILURE


def test_a_lease_that_is_not_renewed_ends_and_the_build_goes_to_another(queue: BuildQueue, clock: Clock) -> None:
    first = _submit(queue, "vim", client="c1")
    _submit(queue, "tmux", client="c2")
    dead = _lease(queue, "w1")
    assert dead.build.build_id == first.build.build_id
    clock.now += 59
    other = _lease(queue, "w2")
    assert other.build.build_id != first.build.build_id
    assert queue.lease(worker="w3", builders=["openwrt"]) is None
    queue.renew(other)

    clock.now += 1
    second = _lease(queue, "w3")

    assert second.build.build_id == first.build.build_id
    assert (second.build.attempts, second.build.worker) == (2, "w3")
    for late in (
        lambda: queue.renew(dead),
        lambda: queue.finish(dead, RESULT),
        lambda: queue.give_back(dead),
        lambda: queue.append_log(dead, "late"),
    ):
        with pytest.raises(LostLeaseError):
            late()
    assert queue.finish(second, RESULT).worker == "w3"
    with pytest.raises(LostLeaseError):
        queue.finish(second, RESULT)


def test_a_worker_that_slept_through_its_lease_has_lost_it_even_when_nobody_took_over(
    queue: BuildQueue, clock: Clock
) -> None:
    _submit(queue, "vim")
    lease = _lease(queue)
    clock.now += 60

    with pytest.raises(LostLeaseError):
        queue.finish(lease, RESULT)
    with pytest.raises(LostLeaseError):
        queue.renew(lease)


def test_a_renewed_lease_lasts(queue: BuildQueue, clock: Clock) -> None:
    _submit(queue, "vim")
    lease = _lease(queue)
    for _ in range(5):
        clock.now += 50
        lease = queue.renew(lease)

    assert queue.lease(worker="w2", builders=["openwrt"]) is None
    queue.finish(lease, RESULT)


def test_a_build_that_kills_its_workers_fails_in_the_end(queue: BuildQueue, clock: Clock) -> None:
    build = _submit(queue, "bomb").build
    for attempt in range(3):
        assert _lease(queue).build.attempts == attempt + 1
        clock.now += 61

    assert queue.lease(worker="w", builders=["openwrt"]) is None
    end = queue.find(build.build_id)
    assert end.state is BuildState.FAILED
    assert end.failure is not None
    assert end.failure.kind is FailureKind.WORKER_LOST


def test_a_build_given_back_waits_as_if_it_had_never_begun(queue: BuildQueue) -> None:
    first = _submit(queue, "vim", client="c1")
    second = _submit(queue, "tmux", client="c2")
    queue.give_back(_lease(queue))

    assert queue.find(first.build.build_id).attempts == 0
    assert (queue.position(first.build.build_id), queue.position(second.build.build_id)) == (0, 1)
    assert _lease(queue).build.build_id == first.build.build_id


def test_a_waiting_build_is_cancelled_at_once_and_can_be_asked_for_again(queue: BuildQueue) -> None:
    build = _submit(queue, "vim").build
    assert queue.cancel(build.build_id).state is BuildState.CANCELLED

    assert queue.lease(worker="w", builders=["openwrt"]) is None
    again = _submit(queue, "vim")
    assert again.is_new
    assert _lease(queue).build.build_id == again.build.build_id
    assert queue.cancel(build.build_id).state is BuildState.CANCELLED


def test_a_running_build_is_asked_to_stop(queue: BuildQueue, clock: Clock) -> None:
    build = _submit(queue, "vim").build
    lease = _lease(queue)
    assert not queue.renew(lease).build.cancel_requested

    assert queue.cancel(build.build_id).state is BuildState.STARTED
    assert queue.renew(lease).build.cancel_requested
    end = queue.finish(lease, BuildFailure(kind=FailureKind.CANCELLED, detail="cancelled"))
    assert end.state is BuildState.CANCELLED
    assert _submit(queue, "vim").is_new

    # A worker that dies before it hears of it does not bring the build back.
    other = _lease(queue)
    queue.cancel(other.build.build_id)
    clock.now += 61
    assert queue.lease(worker="w", builders=["openwrt"]) is None
    assert queue.find(other.build.build_id).state is BuildState.CANCELLED


def test_a_log_can_be_followed_and_is_bounded(queue: BuildQueue, clock: Clock) -> None:
    build = _submit(queue, "vim").build
    lease = _lease(queue)
    assert queue.read_log(build.build_id).text == ""
    queue.append_log(lease, "one\n")
    first = queue.read_log(build.build_id)
    queue.append_log(lease, "tw\0\n")
    queue.append_log(lease, "")
    second = queue.read_log(build.build_id, offset=first.next_offset)
    queue.append_log(lease, "3" * 30)
    queue.append_log(lease, "lost")

    assert (first.text, second.next_offset) == ("one\n", 8)
    assert second.text in {"tw\0\n", "tw\ufffd\n"}
    assert queue.read_log(build.build_id, offset=5).text[1:] == second.text[2:] + "3" * 12
    assert queue.read_log(build.build_id, offset=20).next_offset == 20
    queue.finish(lease, RESULT)
    assert queue.read_log(build.build_id, offset=8).text == "3" * 12
    assert queue.forget_logs(before=clock.now) == 0
    assert queue.forget_logs(before=clock.now + 1) == 1
    assert queue.read_log(build.build_id).text == ""
    assert queue.find(build.build_id).result == RESULT


def test_records_are_listed_newest_first(queue: BuildQueue, clock: Clock) -> None:
    builds = []
    for number in range(4):
        builds.append(_submit(queue, f"p{number}").build.build_id)
        clock.now += 10
    queue.finish(_lease(queue), FAILURE)

    assert [one.build_id for one in queue.recent(limit=3)] == builds[:0:-1]
    assert [one.build_id for one in queue.recent(limit=9, states=["failed"])] == builds[:1]
    assert [one.build_id for one in queue.recent(limit=9, since=clock.now - 25)] == builds[:1:-1]


def test_requests_answered_elsewhere_are_counted_and_an_end_can_be_withdrawn(queue: BuildQueue) -> None:
    build = _submit(queue, "vim").build
    queue.expire(build.build_id)
    queue.finish(_lease(queue), RESULT)
    queue.count_requests(build.build_id, 40)
    assert queue.find(build.build_id).requests == 41

    queue.expire(build.build_id)
    assert _submit(queue, "vim").is_new


def test_unknown_builds_are_said_to_be_unknown(queue: BuildQueue) -> None:
    for ask in (queue.find, queue.position, queue.cancel, queue.read_log, queue.expire):
        with pytest.raises(UnknownBuildError) as refusal:
            ask(77)
        assert refusal.value.http_status == 404
    with pytest.raises(UnknownBuildError):
        queue.count_requests(77, 1)


def test_waiting_workers_hear_of_a_submit(queue: BuildQueue) -> None:
    heard = threading.Event()

    def listen() -> None:
        while queue.waiting() == 0:
            queue.wait(30.0)
        heard.set()

    thread = threading.Thread(target=listen)
    thread.start()
    _submit(queue, "vim")
    thread.join(timeout=300)

    assert heard.is_set()


def test_workers_side_by_side_never_get_the_same_build(queue: BuildQueue) -> None:
    for number in range(12):
        _submit(queue, f"p{number}", client=f"c{number}")

    def work(worker: str) -> list[int]:
        taken = []
        while lease := queue.lease(worker=worker, builders=["openwrt"]):
            taken.append(lease.build.build_id)
            queue.finish(lease, RESULT)
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [number for part in pool.map(work, ["w1", "w2", "w3", "w4"]) for number in part]

    assert len(taken) == len(set(taken)) == 12


# What only queues in a database have: they outlive processes.

_CHILD = """
import sys, time
from overhaul.builds.distributed import ProcrastinateQueue
from overhaul.builds.leasing import LeaseQueue
from overhaul.builds.records import QueueLimits
from overhaul.builds.recipe import Recipe
from overhaul.server.database.engine import Database
kind, url, role = sys.argv[1:]
database = Database(url)

def opened(lease_s):
    limits = QueueLimits(lease_s=lease_s, waiting=1000, waiting_of_client=1000)
    if kind == "procrastinate":
        return ProcrastinateQueue(database, address=url, limits=limits)
    return LeaseQueue(database, limits=limits)

queue = opened(600.0)
if role == "worker":
    lease = queue.lease(worker="doomed", builders=["openwrt"])
    queue.append_log(lease, "begun")
    print(lease.build.build_id, lease.token, flush=True)
    for _renewal in range(3):
        print(repr(queue.renew(lease).ends_at), flush=True)
    # Its last lease is one whose end can be waited for.
    sys.stdin.readline()
    print(repr(opened(1.0).renew(lease).ends_at), flush=True)
    time.sleep(3600)
else:
    for number in range(1_000_000):
        recipe = Recipe(builder="openwrt", distribution="openwrt", version="1", target="x86/64",
                        profile="generic", packages=(f"p{number}",))
        print(queue.submit(recipe, names=[recipe.key], client="c").build.build_id, flush=True)
"""


@pytest.fixture(params=["sqlite", "postgresql", "procrastinate"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _child(kind: str, url: str, role: str) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", _CHILD, kind, url, role], stdin=pipe, stdout=pipe, text=True)


def _url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    return sqlite_url(tmp_path / "q.sqlite3") if kind == "sqlite" else str(request.getfixturevalue("address"))


def test_a_worker_killed_in_mid_build_loses_no_build_and_keeps_none(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The times here are the real ones, of the database where it has a clock."""
    url = _url(kind, tmp_path, request)
    with _opened(kind, url, None) as queue:
        build = _submit(queue, "vim").build
        with _child(kind, url, "worker") as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            number, token = worker.stdout.readline().split()
            assert int(number) == build.build_id
            # As long as it lives and renews, nobody else gets the build.
            for _ in range(3):
                assert queue.lease(worker="other", builders=["openwrt"]) is None
                assert float(worker.stdout.readline())
            worker.stdin.write("\n")
            worker.stdin.flush()
            ends_at = float(worker.stdout.readline())
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
        while (lease := queue.lease(worker="other", builders=["openwrt"])) is None:
            assert queue.find(build.build_id).state is BuildState.STARTED
            queue.wait(0.05)

        assert lease.build.build_id == build.build_id
        assert lease.build.started_at is not None
        assert lease.build.started_at >= ends_at
        assert lease.build.attempts == 2
        dead = Lease(build=lease.build, token=token, worker="doomed", ends_at=0.0)
        with pytest.raises(LostLeaseError):
            queue.finish(dead, RESULT)
        assert queue.finish(lease, RESULT).state is BuildState.FINISHED
        assert queue.read_log(build.build_id).text == "begun"


def test_a_server_killed_while_it_accepts_loses_nothing_it_has_answered(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = _url(kind, tmp_path, request)
    with _opened(kind, url, None, QueueLimits(waiting=10_000, waiting_of_client=10_000)) as queue:
        with _child(kind, url, "server") as server:
            assert server.stdout is not None
            answered = [int(server.stdout.readline()) for _ in range(20)]
            os.kill(server.pid, signal.SIGKILL)
            answered += [int(line) for line in server.stdout.read().splitlines()]
            server.wait()

        leased = []
        while lease := queue.lease(worker="w", builders=["openwrt"]):
            leased.append(lease.build.build_id)
            queue.finish(lease, RESULT)
        assert set(answered) <= set(leased)
        assert len(leased) == len(set(leased))


def test_migrations_leave_exactly_the_tables_the_code_works_with(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    database = Database(_url(kind, tmp_path, request))
    tables.downgrade(database)
    upgrade = distributed.upgrade if kind == "procrastinate" else tables.upgrade
    upgrade(database)
    upgrade(database)

    assert tables.differences(database) == []
    tables.downgrade(database)
    database.close()


def test_procrastinate_is_refused_on_another_database(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "q.sqlite3"))
    with pytest.raises(distributed.NotPostgresError):
        distributed.upgrade(database)
    database.close()
