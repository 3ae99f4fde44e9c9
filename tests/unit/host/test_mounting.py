"""Looking into file systems: nothing is changed, nothing stays mounted, and no link leads out."""

import subprocess
import tempfile
from pathlib import Path

import pytest
from tests.tools import need

from overhaul.host.mounting import find_inside, looking_into
from overhaul.host.processes import ProgramFailedError


def test_an_image_is_read_unchanged_and_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Others on this machine look into file systems at the same time; what is mounted for this test lies here.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "vmlinuz").write_bytes(b"kernel")
    image = tmp_path / "image"
    subprocess.run([need("mkfs.ext4"), "-q", "-d", tree, image, "4M"], check=True, capture_output=True)
    # As after a power cut: mounting it in the usual way would write.
    subprocess.run(["debugfs", "-w", "-R", "feature needs_recovery", image], check=True, capture_output=True)
    before = image.read_bytes()
    with looking_into(image) as root:
        assert (root / "vmlinuz").read_bytes() == b"kernel"
        assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert image.read_bytes() == before


def test_what_is_no_file_system_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    with pytest.raises(ProgramFailedError), looking_into(tmp_path / "image"):
        raise AssertionError


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/vmlinuz", "boot/vmlinuz-6"),
        ("vmlinuz", "boot/vmlinuz-6"),
        ("/absolute", "boot/vmlinuz-6"),
        ("/out", "boot/vmlinuz-6"),
        ("/old/vmlinuz-6", "boot/vmlinuz-6"),
        ("/boot", None),
        ("/nothing", None),
        ("/dangling", None),
        ("/circle", None),
        ("/../../../../../../../../etc/passwd", None),
    ],
)
def test_links_are_followed_as_the_trees_own_system_would(tmp_path: Path, path: str, found: str | None) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6").touch()
    for name, target in {
        "vmlinuz": "boot/vmlinuz-6",
        "absolute": "/boot/vmlinuz-6",
        "out": "../../../../../boot/vmlinuz-6",
        "old": "/boot/.",
        "dangling": "boot/none",
        "circle": "circle",
    }.items():
        (tmp_path / name).symlink_to(target)
    assert find_inside(tmp_path, path) == (None if found is None else tmp_path / found)
