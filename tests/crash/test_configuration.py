"""Laying a configuration over a slot, killed before each durable step: the slot has its old layer or the new one."""

from pathlib import Path

import pytest

from overhaul.install.configuration.layers import Layers
from overhaul.install.configuration.merging import Merge, merge
from overhaul.install.configuration.scanning import scan
from overhaul.release.configuration import Node
from tests.crash.killing import run_killed_at


class NoContents:
    """Nothing here needs merging."""

    def base(self, _path: bytes, _node: Node) -> bytes | None:
        return None

    here = release = base


def configured(directory: Path, **files: str) -> Path:
    directory.mkdir()
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


@pytest.mark.parametrize("step", range(4))
def test_killed_anywhere_a_slot_has_its_old_layer_or_its_new_one(tmp_path: Path, step: int) -> None:
    """Each of the four tests visits every fourth crash point."""
    shipped = scan(configured(tmp_path / "shipped", plain="shipped", gone="shipped")).nodes
    first, second = configured(tmp_path / "first", plain="first"), configured(tmp_path / "second", own="second")
    merges: dict[Path, Merge] = {
        here: merge(shipped, scan(here).nodes, shipped, contents=NoContents()) for here in (first, second)
    }
    uppers: dict[Path, dict[bytes, Node]] = {}

    def write(place: Path, here: Path) -> None:
        Layers(place).replace("B", merges[here], release=shipped, here=here, shipped=b"header")

    def seen(place: Path) -> dict[bytes, Node]:
        return scan(place / "B/upper").nodes

    for here in (first, second):
        write(tmp_path / here.name / "layers", here)
        uppers[here] = seen(tmp_path / here.name / "layers")
    point, passed = step, None
    while passed is None:
        place = tmp_path / f"layers-{point}"
        write(place, first)

        passed = run_killed_at(lambda place=place: write(place, second), point)  # type: ignore[misc]

        assert seen(place) in (uppers[first], uppers[second])
        assert (place / "B/shipped").read_bytes() == b"header"
        write(place, second)
        assert seen(place) == uppers[second]
        # Nothing is left of the one that was killed.
        assert len(list(place.iterdir())) == 2
        point += 4
    assert passed > 8
