"""The pointer in memory, before storages that answer at once and such that do not."""

from collections.abc import Callable, Coroutine
from pathlib import Path

import anyio

from overhaul.repository.memory import MemoryStorage
from overhaul.server.pointer import Pointer
from overhaul.server.tree import LocalTree, StorageTree

KEY = "public/metadata/timestamp.json"


class _CountingStorage(MemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def read(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        self.reads += 1
        return super().read(key, start=start, end=end)


def _run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    anyio.run(test)


async def _body(pointer: Pointer) -> bytes | None:
    prepared = await pointer.current()
    return None if prepared is None else prepared.body


def test_a_local_change_is_seen_by_the_next_request(tmp_path: Path) -> None:
    file = tmp_path / KEY
    file.parent.mkdir(parents=True)
    pointer = Pointer(LocalTree(tmp_path), ask_every_s=60)

    async def walk() -> None:
        assert await _body(pointer) is None
        file.write_bytes(b"one")
        assert await _body(pointer) == b"one"
        first = await pointer.current()
        assert await pointer.current() is first
        replacement = file.with_name("new")
        replacement.write_bytes(b"two")
        replacement.replace(file)
        assert await _body(pointer) == b"two"
        file.unlink()
        assert await _body(pointer) is None

    _run(walk)


def test_a_bucket_is_asked_again_only_after_its_time() -> None:
    storage = _CountingStorage()
    storage.put(KEY, b"one")
    now = 100.0
    pointer = Pointer(StorageTree(storage), ask_every_s=5, clock=lambda: now)

    async def walk() -> None:
        nonlocal now
        assert await _body(pointer) == b"one"
        asked = storage.reads
        storage.put(KEY, b"two")
        now += 4.9
        assert await _body(pointer) == b"one"
        assert storage.reads == asked
        now += 0.2
        assert await _body(pointer) == b"two"

    _run(walk)


def test_many_requests_at_once_ask_a_bucket_once() -> None:
    storage = _CountingStorage()
    storage.put(KEY, b"one")
    pointer = Pointer(StorageTree(storage), ask_every_s=5, clock=lambda: 100.0)
    bodies: list[bytes | None] = []

    async def ask() -> None:
        bodies.append(await _body(pointer))

    async def walk() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(ask)

    _run(walk)
    assert bodies == [b"one"] * 20
    assert storage.reads == 2  # one to learn the version, one for the bytes
