"""What is answered for an application that failed."""

import asyncio

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from overhaul.errors import InputError
from overhaul.server.database.engine import DatabaseFailedError
from overhaul.server.explaining import Explaining


def test_a_fault_of_the_operator_is_an_answer_that_tells_nothing_of_the_machine() -> None:
    async def failing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise DatabaseFailedError(url="postgresql://secret@host/name", reason="no")

    answer = TestClient(Explaining(failing)).get("/api/v1/build/0")

    assert answer.status_code == DatabaseFailedError.http_status >= 500
    assert "secret" not in answer.text
    assert answer.headers["cache-control"] == "no-store"


def test_a_fault_of_who_asks_is_told_in_its_own_words() -> None:
    async def failing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise InputError("There is no such thing; ask for another.")

    answer = TestClient(Explaining(failing)).get("/")

    assert answer.status_code == 400
    assert answer.json()["detail"] == "There is no such thing; ask for another."


def test_an_answer_that_has_begun_is_cut_off_and_not_followed_by_another() -> None:
    sent: list[Message] = []

    async def failing(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise InputError("It broke.")

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(InputError):
        asyncio.run(Explaining(failing)({"type": "http", "method": "GET"}, receive, send))
    assert len(sent) == 1
