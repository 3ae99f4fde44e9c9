"""The server that neighbours ask, against clients that no neighbour is."""

import asyncio
import datetime
import hashlib
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.devices import image_of, release_id

from overhaul.agent.sharing.allowance import Allowance
from overhaul.agent.sharing.serving import MAX_CONNECTIONS_EACH, ShareServer
from overhaul.agent.sharing.shelf import Shelf
from overhaul.content.cache import ContentCache
from overhaul.content.chunker import chunk_file
from overhaul.content.index import Index, write_index
from overhaul.host.listening import listen
from overhaul.install.slots import Slot
from overhaul.install.state import DeviceState, SlotContent, fresh_state

#: Only a failure takes so long.
_PATIENCE_S = 120
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Scene:
    """A shelf with one image."""

    def __init__(self, directory: Path) -> None:
        self.data = image_of("1.0", 512 * 1024)
        slot = directory / "slot"
        slot.write_bytes(self.data)
        self.index: Index = chunk_file(slot)
        encoded = write_index(self.index)
        self.name = hashlib.sha256(encoded).hexdigest()
        cache = ContentCache(directory / "content")
        cache.put(self.name, encoded)
        content = SlotContent(release=release_id("1.0"), index_sha256=self.name, image_size=len(self.data))
        self.state: DeviceState = DeviceState(rollout_id=fresh_state().rollout_id, slots={"A": content})
        self.server = ShareServer(
            shelf=Shelf(slots={"A": Slot(name="A", path=slot)}, state=lambda: self.state, cache=cache),
            allowance=Allowance(
                max_bytes_per_s=10**9,
                max_bytes_per_day=10**12,
                file=directory / "shared.json",
                monotonic=lambda: 0.0,
                now=lambda: datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
            ),
            is_metered=lambda: False,
            head_timeout_s=_PATIENCE_S,
        )

    def talk(self, talk: Talk) -> None:
        """Run the server and one conversation with it."""

        async def both() -> None:
            with listen("127.0.0.1", 0) as listening:
                started = asyncio.Event()
                serving = asyncio.ensure_future(self.server.serve(listening, started=started.set))
                await started.wait()
                reader, writer = await connect(listening)
                async with asyncio.timeout(_PATIENCE_S):
                    await talk(reader, writer)
                writer.transport.abort()
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)

        asyncio.run(both())

    def answer(self, request: bytes) -> bytes:
        """Return all that comes back for the bytes `request`, until the server closes."""
        answers: list[bytes] = []

        async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(request)
            answers.append(await everything(reader))

        self.talk(ask)
        return answers[0]

    def ask(self, path: str, *, times: int = 1) -> list[tuple[bytes, bytes]]:
        """Ask so many times in one breath; return the heads and the bodies of the answers."""
        answers: list[tuple[bytes, bytes]] = []

        async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(f"GET /overhaul/1/{path} HTTP/1.1\r\n\r\n".encode() * times)
            for _answer in range(times):
                head = await reader.readuntil(b"\r\n\r\n")
                size = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
                assert size is not None, head
                answers.append((head, await reader.readexactly(int(size[1]))))

        self.talk(ask)
        return answers

    def get(self, path: str) -> tuple[bytes, bytes]:
        """Return status line and body."""
        [(head, body)] = self.ask(path)
        return head.split(b"\r\n")[0], body


async def connect(listening: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = listening.getsockname()
    return await asyncio.open_connection(host, port)


async def everything(reader: asyncio.StreamReader) -> bytes:
    """Read until the other side ends."""
    data = b""
    try:
        while piece := await reader.read(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_what_is_there_is_said_and_given(scene: Scene) -> None:
    chunks = scene.index.chunks

    assert scene.get(f"images/{scene.name}") == (b"HTTP/1.1 204 No Content", b"")
    assert scene.get(f"pieces/{scene.name}") == (b"HTTP/1.1 200 OK", write_index(scene.index))
    assert scene.get(f"images/{scene.name}/1-2") == (
        b"HTTP/1.1 200 OK",
        scene.data[chunks[1].offset : chunks[2].end],
    )


@pytest.mark.parametrize("path", ["images/{other}", "pieces/{other}", "images/{other}/0-0", "images/{name}/0-9999",
                                  "images/{name}/2-1", "images/{name}/99999999-99999999"])  # fmt: skip
def test_what_is_not_there_is_not_found(scene: Scene, path: str) -> None:
    assert scene.get(path.format(name=scene.name, other="0" * 64)) == (b"HTTP/1.1 404 Not Found", b"")


def test_a_slot_that_is_being_written_is_not_shared(scene: Scene) -> None:
    scene.state = fresh_state()

    assert scene.get(f"images/{scene.name}")[0] == b"HTTP/1.1 404 Not Found"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /overhaul/1/images/x HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /overhaul/1/../../state.json HTTP/1.1\r\n\r\n",
        b"GET /overhaul/1/pieces/%2e%2e HTTP/1.1\r\n\r\n",
        b"GET /overhaul/1/images/{name}?x HTTP/1.1\r\n\r\n",
        b"GET /overhaul/1/images/{name} HTTP/1.0\r\n\r\n",
        b"GET /overhaul/1/images/{name} HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcde",
        b"GET /overhaul/1/images/{name} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
    ],
)
def test_everything_else_is_refused_and_ends_the_connection(scene: Scene, request_bytes: bytes) -> None:
    sent = request_bytes.replace(b"{name}", scene.name.encode())

    assert scene.answer(sent) == b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


def test_a_head_without_end_is_not_kept(scene: Scene) -> None:
    assert scene.answer(b"GET /overhaul/1/images/x HTTP/1.1\r\n" + b"X: y\r\n" * 2000) == b""


def test_a_head_that_never_comes_is_not_waited_for(scene: Scene) -> None:
    scene.server.head_timeout_s = 0.3

    assert scene.answer(b"GET /over") == b""


def test_one_neighbour_has_few_connections(scene: Scene) -> None:
    seen: list[bytes] = []

    async def ask(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = writer.get_extra_info("peername")
        more = [await asyncio.open_connection(host, port) for _ in range(MAX_CONNECTIONS_EACH)]
        # The first connection and all but the last of these are within bounds.
        *_kept, (reader, last) = more
        try:
            last.write(f"GET /overhaul/1/images/{scene.name} HTTP/1.1\r\n\r\n".encode())
            seen.append(await everything(reader))
        finally:
            for _one, other in more:
                other.transport.abort()

    scene.talk(ask)

    assert seen == [b""]


def test_strangers_are_not_answered(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overhaul.agent.sharing.serving.is_near", lambda _host: False)

    assert scene.answer(f"GET /overhaul/1/images/{scene.name} HTTP/1.1\r\n\r\n".encode()) == b""


def test_an_answer_waits_for_its_turn_and_who_is_too_early_for_it_is_told_when_to_ask_again(scene: Scene) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    scene.server.sleep = sleep
    size = scene.index.chunks[0].size
    scene.server.allowance.max_bytes_per_s = size

    *given, last = scene.ask(f"images/{scene.name}/0-0", times=4)

    assert waited == [1.0, 2.0]
    assert given == [(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode(), scene.data[:size])] * 3
    assert last == (b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n", b"")
