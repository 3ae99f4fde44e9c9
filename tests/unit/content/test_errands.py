"""Work that neighbours share."""

import threading
from concurrent.futures import ThreadPoolExecutor

from overhaul.content.errands import Errands, Outcome


def test_each_errand_is_done_once_whoever_takes_it() -> None:
    errands = Errands(range(200))
    done: list[int] = []

    def work(taker: str) -> None:
        while (errand := errands.next(taker)) is not None:
            done.append(errand)
            errands.end(taker, Outcome.DONE)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))

    assert sorted(done) == list(range(200))
    assert not errands.left


def test_what_one_lacks_is_asked_of_the_others_and_not_of_it_again() -> None:
    errands = Errands(["x"])

    assert errands.next("a") == "x"
    errands.end("a", Outcome.LACKING)

    assert errands.next("a") is None
    assert errands.next("b") == "x"
    errands.end("b", Outcome.LACKING)
    assert errands.next("b") is None
    assert errands.left == ["x"]


def test_what_is_left_may_be_done_by_the_same_one_later() -> None:
    errands = Errands(["x"])
    errands.next("a")
    errands.end("a", Outcome.LEFT)

    assert errands.next("a") == "x"


def test_whoever_has_nothing_to_do_waits_for_what_others_may_leave() -> None:
    errands = Errands(["x"])
    errands.next("a")
    begun, taken = threading.Event(), []

    def wait() -> None:
        begun.set()
        taken.append(errands.next("b"))

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait()
    errands.end("a", Outcome.LEFT)
    thread.join(60)

    assert taken == ["x"]
