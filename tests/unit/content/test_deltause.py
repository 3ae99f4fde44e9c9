"""What is kept of a delta while it is used."""

from pathlib import Path

from tests.small_disk import small_disk

from overhaul.content.delta.segments import Segment
from overhaul.content.deltause import KeptPayloads


def _segment(offset: int, size: int) -> Segment:
    return Segment(offset=offset, size=size, sha256=bytes(32), output_sha256=bytes(32), streams=(), units=())


def test_payloads_come_back_as_they_were_kept(tmp_path: Path) -> None:
    first, second, other = _segment(0, 3), _segment(3, 5), _segment(8, 1)
    with KeptPayloads(tmp_path) as kept:
        kept.keep([first, second], [b"abc", b"defgh"])
        assert [kept.take(one) for one in (second, first, other)] == [b"defgh", b"abc", None]
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_nothing_is_kept() -> None:
    with KeptPayloads(None) as kept:
        kept.keep([_segment(0, 3)], [b"abc"])
        assert kept.take(_segment(0, 3)) is None


def test_a_full_disk_loses_what_does_not_fit_and_mixes_nothing_up(tmp_path: Path) -> None:
    sizes = (50_000, 50_000, 1000, 3000)
    segments = [_segment(number * 100_000, size) for number, size in enumerate(sizes)]
    payloads = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    with small_disk(tmp_path / "small", "64k") as directory, KeptPayloads(directory) as kept:
        for segment, payload in zip(segments, payloads, strict=True):
            kept.keep([segment], [payload])
        held = [kept.take(segment) for segment in segments]
    assert held[0] == payloads[0]
    assert held[1] is None
    assert all(one in {None, payload} for one, payload in zip(held, payloads, strict=True))
