"""Images and logs for download: nothing but files that a record in the store names.

A download can be resumed and checked: ranges, a validator, the length in advance (a client compares it with what it
got, so a file is never sent in chunks), and never a type that a browser would show or run.
"""

import functools
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from pathlib import Path

import anyio.to_thread
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from overhaul.builds.records import BuildRecord
from overhaul.builds.store import ArtefactStore, UnknownArtefactError
from overhaul.dialects.asu.prepared import CORS, Ask, Prepared, json_answer
from overhaul.errors import OverhaulError

_NOT_FOUND = {"detail": "Not found"}
Answer = Prepared | Callable[[Scope, Receive, Send], Awaitable[None]]


def missing() -> Prepared:
    """Return the answer for a file that is not there."""
    return json_answer(404, _NOT_FOUND)


async def send_file(store: ArtefactStore, artefact: str, file: str) -> Answer:
    """Return the answer with a file of the store."""
    path = await anyio.to_thread.run_sync(functools.partial(_path, store, artefact, file))
    if path is None:
        return missing()
    response = FileResponse(
        path,
        media_type="application/octet-stream",
        filename=file,
        headers={"x-content-type-options": "nosniff", "content-security-policy": "default-src 'none'; sandbox"},
    )
    response.raw_headers.extend(CORS)
    return response


class StoreFiles:
    """`/store/<directory>/<file>`."""

    def __init__(self, store: ArtefactStore) -> None:
        self._store = store

    async def answer(self, ask: Ask) -> Answer:
        """Answer one request."""
        return await send_file(self._store, ask.path["artefact"], ask.path["file"])


def listing(store: ArtefactStore, build: BuildRecord) -> list[dict[str, object]] | None:
    """Return the files of a build as the seed era's directory index, or None when they are gone."""
    record = None if build.result is None else store.record(build.result.artefact)
    if record is None:
        return None
    return [
        {
            "name": file.name,
            "type": "file",
            "mtime": formatdate(record.added_at, usegmt=True),
            "size": file.size_bytes,
        }
        for file in sorted(record.files, key=lambda file: file.name)
    ]


def _path(store: ArtefactStore, artefact: str, file: str) -> Path | None:
    try:
        path = store.path(artefact, file)
    except (UnknownArtefactError, OverhaulError, ValueError):
        return None
    return path if path.is_file() else None
