"""Which deltas are found to lead from one release over others to a third."""

import pytest

from overhaul.content.chains import find_chains
from overhaul.release.record import DeltaRef, FileRef, ImageRecord, PackRef, Release, ReleaseId


def _file(name: str, size: int) -> FileRef:
    return FileRef(path=f"content/{name}", size=size, sha256="0" * 64)


def _index(version: int) -> str:
    return f"{version:064x}"


class _Line:
    """Releases 1, 2, 3 ... with deltas of given sizes between them; counts the records that are read."""

    def __init__(self, deltas: dict[tuple[int, int], int], *, packs: int = 10_000) -> None:
        self._deltas = deltas
        self._packs = packs
        self.read_versions: list[str] = []

    def release(self, version: int) -> Release:
        pack = PackRef(pack=_file(f"pack{version}", self._packs), frames=_file(f"frames{version}", 80))
        return Release(
            format=1,
            id=ReleaseId(product="demo", variant="base", arch="amd64", version=str(version), build_id="b"),
            published_at=0,
            image=ImageRecord(
                size=1 << 20,
                filesystem="raw",
                index=FileRef(path="content/index", size=100, sha256=_index(version)),
                packs=(pack,),
                deltas=tuple(
                    DeltaRef(
                        source_index=_index(old),
                        source_version=str(old),
                        source_build_id="b",
                        file=_file(f"{old}-{new}", size),
                        header_size=10,
                        header_sha256="1" * 64,
                        coders=(),
                        written_size=1000,
                    )
                    for (old, new), size in self._deltas.items()
                    if new == version
                ),
            ),
        )

    def read(self, release: ReleaseId) -> Release | None:
        self.read_versions.append(release.version)
        return self.release(int(release.version))

    def chain(self, old: int, new: int) -> list[str]:
        """Return the versions that the deltas of the chain start from."""
        chains = find_chains(self.release(new), _index(old), read=self.read)
        return [delta.source_version for chain in chains for delta in chain]


@pytest.mark.parametrize(
    ("deltas", "old", "new", "chain"),
    [
        ({(1, 2): 5, (2, 3): 5}, 1, 3, ["1", "2"]),
        ({(1, 2): 5, (2, 3): 5, (3, 4): 5}, 1, 4, ["1", "2", "3"]),
        # The fewest bytes, not the fewest steps.
        ({(1, 2): 5, (2, 3): 5, (3, 5): 5, (1, 4): 50, (4, 5): 5}, 1, 5, ["1", "2", "3"]),
        ({(1, 2): 50, (2, 3): 50, (3, 5): 50, (1, 4): 50, (4, 5): 5}, 1, 5, ["1", "4"]),
        # A direct delta leaves nothing to look for.
        ({(1, 3): 500, (1, 2): 5, (2, 3): 5}, 1, 3, []),
        ({(2, 3): 5}, 1, 3, []),
        # Never more than everything that is published of the release.
        ({(1, 2): 9_000, (2, 3): 2_000}, 1, 3, []),
    ],
)
def test_the_cheapest_chain_is_found(deltas: dict[tuple[int, int], int], old: int, new: int, chain: list[str]) -> None:
    assert _Line(deltas).chain(old, new) == chain


def test_few_records_are_read_whatever_is_published() -> None:
    line = _Line({(old, new): 5 for new in range(2, 60) for old in range(max(1, new - 3), new) if old % 7})
    assert line.chain(1, 59) == []
    assert len(line.read_versions) <= 8
    assert len(set(line.read_versions)) == len(line.read_versions)


def test_a_record_that_is_gone_or_of_other_bytes_ends_a_chain() -> None:
    line = _Line({(1, 2): 5, (2, 3): 5})
    release = line.release(3)
    assert find_chains(release, _index(1), read=lambda _release: None) == ()
    assert find_chains(release, _index(1), read=lambda _release: line.release(1)) == ()
    assert find_chains(release, None, read=line.read) == ()
