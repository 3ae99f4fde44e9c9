"""The document that holds a whole static tree under one signature."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.dialects.atomupd.signed_answers import UnusableAnswersError, decode_answers, encode_answers
from overhaul.trust import roles


@given(st.dictionaries(st.text(), st.text().map(str.encode)))
def test_files_come_back_as_they_were(files: dict[str, bytes]) -> None:
    assert decode_answers(encode_answers(files)) == files


def test_the_order_of_files_changes_no_byte_and_contents_stand_once() -> None:
    data = encode_answers({"b": b"{}", "a": b"{}", "c": b"x"})
    assert data == encode_answers({"c": b"x", "a": b"{}", "b": b"{}"})
    assert json.loads(data)["contents"] == ["{}", "x"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"format": 2, "contents": [], "files": {}}',
        b'{"format": 1, "contents": [], "files": {"a": 0}}',
        b'{"format": 1, "contents": ["x"], "files": {"a": -1}}',
        b'{"format": 1, "contents": ["x"], "files": {"a": "0"}}',
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(UnusableAnswersError):
        decode_answers(data)


def test_answers_are_signed_by_the_role_of_policies() -> None:
    assert roles.role_of_path(roles.answers_path("weather", "atomupd")) == "weather-policy"
