import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.varints import VarintReader, append_signed, append_varint


@given(st.lists(st.integers(0, (1 << 62) - 1)), st.lists(st.integers(-(1 << 61), 1 << 61)))
def test_numbers_come_back_as_they_were_written(plain: list[int], signed: list[int]) -> None:
    data = bytearray()
    for value in plain:
        append_varint(data, value)
    for value in signed:
        append_signed(data, value)
    reader = VarintReader(bytes(data))
    assert [reader.number() for _ in plain] == plain
    assert [reader.signed() for _ in signed] == signed
    assert reader.remaining == 0


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff\xff", b"\xff" * 9 + b"\x01", b"\xff" * 100_000])
def test_a_number_cut_short_or_endless_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedDeltaError):
        VarintReader(data).number()


def test_a_count_that_the_rest_cannot_hold_is_refused_before_anything_is_made_of_it() -> None:
    data = bytearray()
    append_varint(data, 1 << 40)
    with pytest.raises(MalformedDeltaError, match="1099511627776 entries"):
        VarintReader(bytes(data)).count()
    data = bytearray(b"\x03abcdefgh")
    with pytest.raises(MalformedDeltaError):
        VarintReader(bytes(data)).count(item_bytes=3)
    assert VarintReader(bytes(data)).count(item_bytes=2) == 3
