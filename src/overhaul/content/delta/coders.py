"""What the names of coders in a delta mean: how streams are unpacked, and how a unit's bytes are computed.

Stream coders
    stored    the bytes as they are, for what is compressed already
    lzma2     a raw LZMA2 stream with a dictionary of `format.LZMA2_DICTIONARY`

Unit coders; the streams of a segment are control, difference, extra and frame, in this order
    covers         takes the first three, see the module of that name
    zstd-prefix    takes the fourth: a zstd frame with the window as its prefix

Every decoder here is bounded by sizes that stand in the signed header.
"""

from collections.abc import Sequence

from overhaul.content.delta.covers import decode_covers
from overhaul.content.delta.errors import MalformedDeltaError, UnknownCoderError
from overhaul.content.delta.segments import Stream, Unit, unpack_lzma2
from overhaul.content.zstd import decompress_with_prefix

KNOWN_CODERS = frozenset({"covers", "lzma2", "stored", "zstd-prefix"})
_COVERS_PARTS = 3
_PARTS = 4


def decode_streams(streams: Sequence[Stream], payload: bytes) -> list[bytes]:
    """Return the decoded bytes of streams that lie behind one another in `payload`."""
    decoded: list[bytes] = []
    position = 0
    for stream in streams:
        decoded.append(_decode_stream(stream, payload[position : position + stream.size]))
        position += stream.size
    return decoded


def _decode_stream(stream: Stream, packed: bytes) -> bytes:
    match stream.coder:
        case "stored":
            data = packed
        case "lzma2":
            data = unpack_lzma2(packed, stream.decoded_size)
        case unknown:
            raise UnknownCoderError(unknown)
    if len(data) != stream.decoded_size:
        raise MalformedDeltaError(f"a stream does not hold the {stream.decoded_size} bytes it states")
    return data


def compute_unit(unit: Unit, window: bytes, parts: Sequence[bytes]) -> bytes:
    """Return the bytes of the new image that `unit` writes."""
    if len(parts) != _PARTS:
        raise MalformedDeltaError(f"a unit has {len(parts)} parts")
    match unit.coder:
        case "covers":
            return decode_covers(parts[:_COVERS_PARTS], window, unit.output_size)
        case "zstd-prefix":
            return decompress_with_prefix(parts[_COVERS_PARTS], window, size=unit.output_size)
        case unknown:
            raise UnknownCoderError(unknown)
