"""The socket the server listens on."""

import asyncio
import socket

import pytest

from overhaul.host.listening import listen


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_answers_leave_at_once_and_do_not_wait_for_more_to_send(host: str) -> None:
    found: asyncio.Queue[int] = asyncio.Queue()

    async def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        found.put_nowait(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def answered(listening: socket.socket) -> int:
        async with await asyncio.start_server(connected, sock=listening):
            _reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            try:
                return await found.get()
            finally:
                writer.close()
                await writer.wait_closed()

    # asyncio's own loop, whatever faster one is installed: that is what an installation without extras runs on.
    with listen(host, 0) as listening, asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(answered(listening)) == 1
