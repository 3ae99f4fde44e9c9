"""How many reports one sender may hand in."""

from hypothesis import given
from hypothesis import strategies as st

from overhaul.server.allowance import Allowance


def test_a_burst_is_let_through_and_then_one_for_each_share_of_a_minute() -> None:
    allowance = Allowance(per_minute=3)

    assert [allowance.wait_s("10.0.0.1", now=100.0) for _ in range(4)] == [0, 0, 0, 20.0]
    assert allowance.wait_s("10.0.0.1", now=110.0) == 10.0
    assert allowance.wait_s("10.0.0.1", now=120.0) == 0
    assert allowance.wait_s("10.0.0.2", now=120.0) == 0


def test_an_owner_of_a_whole_ipv6_network_is_one_sender() -> None:
    allowance = Allowance(per_minute=1)

    assert allowance.wait_s("2001:db8::1", now=0.0) == 0
    assert allowance.wait_s("2001:db8::ffff:2", now=0.0) > 0
    assert allowance.wait_s("2001:db8:0:1::1", now=0.0) == 0
    assert allowance.wait_s("::ffff:10.0.0.1", now=0.0) == 0
    assert allowance.wait_s("10.0.0.1", now=0.0) > 0
    assert allowance.wait_s("::ffff:10.0.0.2", now=0.0) == 0


def test_only_so_many_senders_are_remembered() -> None:
    allowance = Allowance(per_minute=1, remembered=2)
    for sender in ("a", "b", "c"):
        allowance.wait_s(sender, now=0.0)

    assert allowance.wait_s("c", now=0.0) > 0
    assert allowance.wait_s("a", now=0.0) == 0


@given(st.integers(1, 100), st.lists(st.floats(0, 30), min_size=1, max_size=300))
def test_no_sender_gets_more_than_a_burst_and_its_share_of_the_time(per_minute: int, pauses: list[float]) -> None:
    allowance = Allowance(per_minute=per_minute)
    now = taken = 0.0
    for pause in pauses:
        now += pause
        taken += allowance.wait_s("a", now=now) == 0

    assert taken <= per_minute * (1 + now / 60) + 1e-6
