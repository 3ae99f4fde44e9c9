"""Releases published by hand into a directory: real indexes, packs, tables and small deltas.

The deltas here match blocks at equal content and correct the others against the old bytes at the same place, in
many small segments, so that tests can interrupt between them. What the real delta maker makes is its own room's
business.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from overhaul.content.delta.covers import Cover, encode_covers
from overhaul.content.delta.format import CopyRun, DeltaHeader, write_header
from overhaul.content.delta.make import make_delta
from overhaul.content.delta.segments import Run, Segment, Stream, Unit
from overhaul.content.frames import write_frames
from overhaul.content.index import Index, write_index
from overhaul.content.ingest import ingest_image
from overhaul.content.mending import WrittenMends
from overhaul.progress import Silence
from overhaul.release.record import DeltaRef, FileRef, ImageRecord, MendsRef, PackRef, Release, ReleaseId

_BLOCK = 4096
_UNIT = 32 * 1024


@dataclass(frozen=True)
class Published:
    """A release and what a test wants to know of it."""

    release: Release
    index: Index
    image: Path

    @property
    def index_sha256(self) -> str:
        return self.release.image.index.sha256

    @property
    def content(self) -> bytes:
        return self.image.read_bytes()


def some_image(seed: int, *, size: int = 3_000_000, zeros: int = 1_000_000) -> bytes:
    """Return bytes of which half compress, with a run of zeros in the middle and at the end."""
    source = random.Random(seed)
    words = [source.randbytes(6) for _ in range(200)]
    parts: list[bytes] = []
    while sum(map(len, parts)) < size:
        parts.append(source.randbytes(20_000))
        parts.append(b" ".join(source.choices(words, k=3000)))
        if len(parts) == 20:
            parts.append(bytes(zeros))
    data = b"".join(parts)[:size] + bytes(zeros)
    return data + bytes(-len(data) % _BLOCK)


def successor(old: bytes, seed: int) -> bytes:
    """Return an image that moves, edits and replaces parts of `old`."""
    source = random.Random(seed)
    half = len(old) // 2 // _BLOCK * _BLOCK
    data = bytearray(old[half:] + old[:half])
    for _ in range(25):
        offset = source.randrange(len(data) - 40_000)
        data[offset : offset + 5000] = source.randbytes(5000)
    for _ in range(200):
        data[source.randrange(len(data))] ^= 1
    return bytes(data)


def publish(
    site: Path,
    content: bytes | Path,
    *,
    version: str,
    earlier: Sequence[Published] = (),
    delta_from: Published | None = None,
    mended_blocks: int = 0,
) -> Published:
    """Write everything a device needs below `site`; packs hold what `earlier` releases do not."""
    image = content if isinstance(content, Path) else site / f"{version}.img"
    if isinstance(content, bytes):
        image.write_bytes(content)
    known = {chunk.id for release in earlier for chunk in release.index}
    scratch = site / "scratch.pack"
    mends = site / "scratch.mends"
    ingested = ingest_image(image, scratch, known=known, workers=1, sums=mended_blocks, mends=mends, progress=Silence())
    packs = [
        PackRef(
            pack=_store(site, "packs", "pack", scratch.read_bytes()),
            frames=_store(site, "frames", "frames", write_frames(ingested.frames)),
            mends=msgspec.UNSET if ingested.mends is None else _mends_ref(site, mends, ingested.mends),
        ),
        *(pack for release in earlier for pack in release.release.image.packs),
    ]
    scratch.unlink()
    release = Release(
        format=1,
        id=ReleaseId(product="demo", variant="base", arch="amd64", version=version, build_id="b1"),
        published_at=0,
        image=ImageRecord(
            size=image.stat().st_size,
            filesystem="raw",
            index=_store(site, "indexes", "caibx", write_index(ingested.index)),
            packs=tuple(dict.fromkeys(packs)),
        ),
    )
    if delta_from is not None:
        delta = publish_delta(site, delta_from, image.read_bytes())
        release = with_deltas(release, delta)
    return Published(release, ingested.index, image)


def _mends_ref(site: Path, file: Path, written: WrittenMends) -> MendsRef:
    return MendsRef(
        file=_store(site, "mends", "mends", file.read_bytes()),
        header_size=written.header_size,
        header_sha256=written.header_sha256,
    )


def with_deltas(release: Release, *deltas: DeltaRef) -> Release:
    """Return `release` with these deltas."""
    image = release.image
    return Release(
        format=release.format,
        id=release.id,
        published_at=release.published_at,
        image=ImageRecord(
            size=image.size, filesystem=image.filesystem, index=image.index, packs=image.packs, deltas=deltas
        ),
    )


def publish_delta(site: Path, old: Published, new: bytes) -> DeltaRef:
    """Write a delta that makes `new` of the image of `old`."""
    header, payload = _make_delta(old.content, new)
    head = write_header(header)
    file = _store(site, "deltas", "delta", head + payload)
    return DeltaRef(
        source_index=old.index_sha256,
        source_version=old.release.id.version,
        source_build_id=old.release.id.build_id,
        file=file,
        header_size=len(head),
        header_sha256=hashlib.sha256(head).hexdigest(),
        coders=header.coders,
        written_size=header.computed_size,
    )


def publish_real_delta(site: Path, old: Published, new: Path) -> DeltaRef:
    """Write the delta the publisher would make between two ext4 images."""
    scratch = site / "scratch.delta"
    made = make_delta(old.image, new, scratch, workers=1, progress=Silence())
    file = _store(site, "deltas", "delta", scratch.read_bytes())
    scratch.unlink()
    return DeltaRef(
        source_index=old.index_sha256,
        source_version=old.release.id.version,
        source_build_id=old.release.id.build_id,
        file=file,
        header_size=made.header_size,
        header_sha256=made.header_sha256,
        coders=made.coders,
        rebuilds=made.rebuilds,
        written_size=made.written_size,
    )


def _make_delta(old: bytes, new: bytes) -> tuple[DeltaHeader, bytes]:
    places = {old[offset : offset + _BLOCK]: offset for offset in range(0, len(old), _BLOCK)}
    copies: list[CopyRun] = []
    runs: list[Run] = []
    for offset in range(0, len(new), _BLOCK):
        block = new[offset : offset + _BLOCK]
        place = places.get(block)
        if block == bytes(len(block)):
            continue
        if place is not None:
            last = copies[-1] if copies else None
            if last is not None and (last.target + last.size, last.source + last.size) == (offset, place):
                copies[-1] = last._replace(size=last.size + len(block))
            else:
                copies.append(CopyRun(offset, place, len(block)))
        elif runs and runs[-1].end == offset and runs[-1].size < _UNIT:
            runs[-1] = Run(runs[-1].offset, runs[-1].size + len(block))
        else:
            runs.append(Run(offset, len(block)))
    segments: list[Segment] = []
    payload = b""
    for run in runs:
        wanted = new[run.offset : run.end]
        window = Run(run.offset, min(run.size, max(0, len(old) - run.offset)))
        covers = [Cover(0, 0, window.size)] if window.size else []
        # The fourth stream is that of the other unit coder.
        parts = (*encode_covers(wanted, old[window.offset : window.end], covers), b"")
        data = b"".join(parts)
        unit = Unit("covers", (run,), (window,) if window.size else (), tuple(map(len, parts)))
        segments.append(
            Segment(
                len(payload),
                len(data),
                hashlib.sha256(data).digest(),
                hashlib.sha256(wanted).digest(),
                tuple(Stream("stored", len(part), len(part)) for part in parts),
                (unit,),
            )
        )
        payload += data
    header = DeltaHeader(source_size=len(old), target_size=len(new), copies=copies, segments=segments)
    head_size = len(write_header(header))
    placed = [replace(segment, offset=head_size + segment.offset) for segment in segments]
    return replace(header, segments=placed), payload


def _store(site: Path, kind: str, suffix: str, data: bytes) -> FileRef:
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"content/{kind}/{sha256[:2]}/{sha256}.{suffix}"
    (site / path).parent.mkdir(parents=True, exist_ok=True)
    (site / path).write_bytes(data)
    return FileRef(path=path, size=len(data), sha256=sha256)
