"""The published files of one release, as a device gets them: from the cache or the network, and checked.

Whole files and headers are compared with their signed digests here. Frames and segments come as they are streamed;
whoever decodes them checks them first.
"""

import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing

import msgspec

from overhaul.content.cache import ContentCache
from overhaul.content.delta.format import DeltaHeader, read_header
from overhaul.content.delta.segments import Segment
from overhaul.content.frames import Frame, MalformedFrameTableError, read_frames
from overhaul.content.index import CHUNK_SIZE_MAX, Index, MalformedIndexError, longest_index, read_index
from overhaul.content.mending import MendPlace, read_mends_header
from overhaul.content.packranges import PackRange
from overhaul.release.record import DeltaRef, FileRef, ImageRecord
from overhaul.transfer.fetcher import Fetcher, RefusedStatusError
from overhaul.transfer.fetching import WrongDigestError, fetch_bytes, fetch_ref, published_url
from overhaul.transfer.ranges import cut_parts, read_ranges

#: zstd never makes a frame bigger than its content by more than this.
_FRAME_LIMIT_BYTES = CHUNK_SIZE_MAX + 64 * 1024
#: Done segments between two that are wanted are fetched along when they are smaller than this.
_GAP_BYTES = 16 * 1024
#: Mends between two that are wanted: a block costs less than a request, more would be the damage again.
_MENDS_GAP_BYTES = 4 * 1024


class PublishedFiles:
    """Fetches what a release record names."""

    def __init__(
        self, *, fetcher: Fetcher, base_url: str, image: ImageRecord, cache: ContentCache, keeps_segments: bool = False
    ) -> None:
        self._keeps_segments = keeps_segments
        #: Digests of everything that was asked for here and may lie in the cache.
        self.used: set[str] = set()
        self._fetcher = fetcher
        self._base_url = base_url
        self._image = image
        self._cache = cache
        self._tables: list[list[Frame]] | None = None

    def index(self) -> Index:
        """Return the index of the image.

        Raises:
            MalformedIndexError: It describes another image than the record.
        """
        index = read_index(self._whole(self._image.index))
        if index.size != self._image.size:
            raise MalformedIndexError(f"it describes {index.size} bytes, the release record {self._image.size}")
        return index

    def other_index(self, sha256: str, *, image_bytes: int) -> Index | None:
        """Return the index with this digest, or None when the repository has it no more.

        It is of whichever release that fits into `image_bytes`: nothing signed says how long it is.
        """
        data = self._cache.get(sha256)
        if data is None:
            url = published_url(self._base_url, f"content/indexes/{sha256[:2]}/{sha256}.caibx")
            try:
                data = fetch_bytes(self._fetcher, url, limit_bytes=longest_index(image_bytes))
            except RefusedStatusError:
                return None
            if hashlib.sha256(data).hexdigest() != sha256:
                raise WrongDigestError(url=url)
            self._cache.put(sha256, data)
        return read_index(data)

    def tables(self) -> Sequence[Sequence[Frame]]:
        """Return the frame tables of all packs, in the record's order."""
        if self._tables is None:
            self._tables = [self._table(pack.frames) for pack in self._image.packs]
        return self._tables

    def _table(self, ref: FileRef) -> list[Frame]:
        frames = read_frames(self._whole(ref))
        biggest = max((frame.size for frame in frames), default=0)
        if biggest > _FRAME_LIMIT_BYTES:
            raise MalformedFrameTableError(f"a frame of {biggest} bytes is longer than any chunk needs")
        return frames

    def delta_header(self, delta: DeltaRef) -> DeltaHeader:
        """Return the header of a delta."""
        return read_header(self._header(delta.file, delta.header_size, delta.header_sha256))

    def _header(self, file: FileRef, size: int, sha256: str) -> bytes:
        """Return the signed first bytes of a file."""
        self.used.add(sha256)
        data = self._cache.get(sha256)
        if data is None:
            url = published_url(self._base_url, file.path)
            data = fetch_bytes(self._fetcher, url, limit_bytes=size, end=size)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise WrongDigestError(url=url, part="the header")
            self._cache.put(sha256, data)
        return data

    def pack_url(self, pack: int) -> str:
        """Return the address of a pack."""
        return published_url(self._base_url, self._image.packs[pack].pack.path)

    def frames(self, ranges: Iterable[PackRange]) -> Generator[bytes]:
        """Yield the bytes of each wanted frame of the ranges, in their order; digests are still to be checked."""
        by_pack: dict[int, list[PackRange]] = {}
        for piece in ranges:
            by_pack.setdefault(piece.pack, []).append(piece)
        for pack, pieces in by_pack.items():
            url = self.pack_url(pack)
            # Closed here: an error keeps this frame and all in it alive, and with it a connection.
            with closing(read_ranges(self._fetcher, url, ((piece.start, piece.end) for piece in pieces))) as bodies:
                for piece, body in zip(pieces, bodies, strict=True):
                    yield from cut_parts(body, piece.start, ((frame.offset, frame.end) for frame in piece.frames))

    def segments(self, delta: DeltaRef, wanted: Sequence[Segment]) -> Generator[bytes]:
        """Yield the bytes of each wanted segment, ascending in the file; digests are still to be checked."""
        self.used.update(segment.sha256.hex() for segment in wanted)
        held = {segment.sha256 for segment in wanted if segment.sha256.hex() in self._cache}
        ranges = [(segment.offset, segment.end) for segment in wanted if segment.sha256 not in held]
        with closing(self._parts(delta.file, ranges, gap_bytes=_GAP_BYTES)) as bodies:
            for segment in wanted:
                if segment.sha256 not in held:
                    yield self._keep(segment, next(bodies))
                elif (data := self._cache.get(segment.sha256.hex())) is not None:
                    yield data
                else:
                    # Damaged where it was kept.
                    yield from self._parts(delta.file, [(segment.offset, segment.end)], gap_bytes=_GAP_BYTES)

    def _keep(self, segment: Segment, data: bytes) -> bytes:
        """Return the bytes of a segment; what is right of them is kept where that was asked for."""
        if self._keeps_segments and hashlib.sha256(data).digest() == segment.sha256:
            self._cache.put_if_room(segment.sha256.hex(), data)
        return data

    def mends_header(self, pack: int) -> Mapping[bytes, MendPlace]:
        """Return where the mends of each chunk of a pack lie; nothing where none were made."""
        mends = self._image.packs[pack].mends
        if mends is msgspec.UNSET:
            return {}
        return read_mends_header(self._header(mends.file, mends.header_size, mends.header_sha256))

    def mends(self, pack: int, ranges: Sequence[tuple[int, int]]) -> Generator[bytes]:
        """Yield the bytes of ascending ranges of a pack's mends; nothing says whether they are right."""
        mends = self._image.packs[pack].mends
        if mends is not msgspec.UNSET:
            yield from self._parts(mends.file, ranges, gap_bytes=_MENDS_GAP_BYTES)

    def _parts(self, file: FileRef, wanted: Sequence[tuple[int, int]], *, gap_bytes: int) -> Generator[bytes]:
        """Yield the bytes of ascending (start, end) ranges of a file; those with small gaps share a request."""
        groups: list[list[tuple[int, int]]] = []
        for start, end in wanted:
            if groups and start - groups[-1][-1][1] <= gap_bytes:
                groups[-1].append((start, end))
            else:
                groups.append([(start, end)])
        url = published_url(self._base_url, file.path)
        ranges = ((group[0][0], group[-1][1]) for group in groups)
        with closing(read_ranges(self._fetcher, url, ranges)) as bodies:
            for group, body in zip(groups, bodies, strict=True):
                yield from cut_parts(body, group[0][0], group)

    def _whole(self, ref: FileRef) -> bytes:
        self.used.add(ref.sha256)
        data = self._cache.get(ref.sha256)
        if data is None:
            data = fetch_ref(self._fetcher, self._base_url, ref)
            self._cache.put(ref.sha256, data)
        return data
