"""A client that is killed at any durable step leaves a system that the same command, run again, makes right.

At every crash point of an update, a repair, an installation and a removal: the file that tells the version is the old
one or the new one and never missing; running the command again ends well; then the system is exactly what the
manifests say, and nothing temporary is left.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overhaul.dialects.swupd.device.exits import Exit
from tests.crash.killing import run_killed_at
from tests.swupd_device import SwupdDevice, assert_system, expect
from tests.swupd_site import Packing, Site, Tree, directory, file, link

#: No command here has so many durable steps; a guard against a loop without end.
_MANY = 2000

OLD: Tree = {
    "/usr/bin": directory(),
    "/usr/bin/tool": file(b"tool " * 100, 0o755),
    "/usr/bin/gone": file("gone"),
    "/usr/lib/becomes-link": file("file"),
    "/usr/lib/becomes-directory": file("file"),
    "/usr/lib/becomes-file": directory(),
    "/usr/lib/becomes-file/inner": file("inner"),
    "/usr/lib/old": directory(),
    "/usr/lib/old/inner": file("inner"),
    "/usr/lib/rights": directory(0o755),
}
NEW: Tree = {
    "/usr/bin": directory(),
    "/usr/bin/tool": file(b"tool " * 60 + b"new" + b"tool " * 60, 0o755),
    "/usr/lib/becomes-link": link("../bin/tool"),
    "/usr/lib/becomes-directory": directory(0o750),
    "/usr/lib/becomes-directory/deep": directory(),
    "/usr/lib/becomes-directory/deep/file": file("deep"),
    "/usr/lib/becomes-file": file("now a file"),
    "/usr/lib/rights": directory(0o711),
    "/usr/lib/new": file("new"),
}


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory in memory: a kill is no power cut, and hundreds of syncs of a busy disk take minutes."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory_:
        yield Path(directory_)


def _world(directory_: Path, *, packing: Packing | None = None) -> tuple[Site, SwupdDevice]:
    site = Site(directory_ / "www")
    site.publish(10, {"os-core": OLD, "extra": {"/usr/share/extra": file("extra")}})
    device = SwupdDevice.of(directory_ / "device", site)
    device.install("--bundles=extra")
    device.options.append("--max-parallel-downloads=2")
    site.publish(20, {"os-core": NEW, "extra": {"/usr/share/extra": file("extra 2")}}, packing=packing)
    return site, device


def _crash_everywhere(device: SwupdDevice, act: Callable[[], None], check: Callable[[], None]) -> int:
    """Kill `act` at every crash point, run it again and check; return how many there were."""
    original = device.directory.with_name("original")
    device.directory.rename(original)
    for point in range(_MANY):
        shutil.rmtree(device.directory, ignore_errors=True)
        shutil.copytree(original, device.directory, symlinks=True)
        passed = run_killed_at(act, point)
        assert device.version() in {"10", "20"}, point
        act()
        check()
        if passed is not None:
            return passed
    raise AssertionError("the command never ends")


@pytest.mark.parametrize("packs", [True, False])
def test_an_update_killed_at_any_step_is_finished_by_the_next(place: Path, packs: bool) -> None:
    site, device = _world(place, packing=Packing(packs=packs))

    def check() -> None:
        assert_system(device.root, site.tree())
        assert not (device.state / "journal").exists()
        assert (device.state / "version").read_text() == "20\n"

    steps = _crash_everywhere(device, lambda: _run(device, "update"), check)
    assert steps > 30


def test_once_everything_lies_ready_an_update_is_finished_without_the_repository(place: Path) -> None:
    site, device = _world(place)
    finished: list[int] = []
    original = device.directory.with_name("original")
    device.directory.rename(original)
    for point in range(_MANY):
        shutil.rmtree(device.directory, ignore_errors=True)
        shutil.copytree(original, device.directory, symlinks=True)
        passed = run_killed_at(lambda: _run(device, "update"), point)
        journal = device.state / "journal"
        if journal.exists() and b'"applying"' in journal.read_bytes():
            # The command itself fails without its repository, and the system is whole all the same.
            device.run("update", url=f"file://{place}/nowhere")
            assert_system(device.root, site.tree())
            finished.append(point)
        if passed is not None:
            break
    assert len(finished) > 10


def test_a_staged_update_killed_at_any_step_leaves_a_whole_system_to_boot(place: Path) -> None:
    site, device = _world(place)
    systems = device.directory / "systems"
    old, new = site.versions[0], site.tree()
    whole = {10: {path: one for tree in old.trees.values() for path, one in tree.items()}, 20: new}

    def act() -> None:
        _run(device, "update", f"--staged={systems}")

    original = device.directory.with_name("original")
    device.directory.rename(original)
    # Most of the points lie in the copying, where each is like the next.
    for point in range(0, _MANY, 4):
        shutil.rmtree(device.directory, ignore_errors=True)
        shutil.copytree(original, device.directory, symlinks=True)
        passed = run_killed_at(act, point)
        current = (systems / "current").resolve() if (systems / "current").is_symlink() else device.root
        assert_system(current, whole[20 if current != device.root else 10])
        assert_system(device.root, whole[10])
        act()
        assert_system((systems / "current").resolve(), new)
        if passed is not None:
            return
    raise AssertionError("the command never ends")


def test_a_repair_killed_at_any_step_is_finished_by_the_next(place: Path) -> None:
    site, device = _world(place)
    _run(device, "update")
    (device.root / "usr/bin/tool").write_bytes(b"damaged")
    (device.root / "usr/lib/new").unlink()
    shutil.rmtree(device.root / "usr/lib/becomes-directory")
    (device.root / "usr/stray").mkdir()
    (device.root / "usr/stray/file").write_bytes(b"stray")
    steps = _crash_everywhere(
        device, lambda: _run(device, "repair", "--picky"), lambda: assert_system(device.root, site.tree())
    )
    assert steps > 20


def test_a_removal_killed_at_any_step_is_finished_by_the_next(place: Path) -> None:
    site, device = _world(place)
    _run(device, "update")

    def act() -> None:
        ran = device.run("bundle-remove", "extra")
        # A second run finds that the first had finished what it had begun.
        assert ran.code in {Exit.OK, Exit.NOT_INSTALLED}, ran

    def check() -> None:
        assert_system(device.root, {path: one for path, one in site.tree().items() if "extra" not in path})
        assert not (device.state / "bundles" / "extra").exists()

    assert _crash_everywhere(device, act, check) > 8


def test_an_installation_killed_at_any_step_is_finished_by_the_next(place: Path) -> None:
    site = Site(place / "www")
    site.publish(10, {"os-core": dict(list(OLD.items())[:4])})
    device = SwupdDevice.of(place / "device", site)
    for point in range(_MANY):
        shutil.rmtree(device.directory, ignore_errors=True)
        device.directory.mkdir()
        passed = run_killed_at(lambda: _install(device), point)
        _install(device)
        assert_system(device.root, site.tree())
        if passed is not None:
            return
    raise AssertionError("the command never ends")


def _install(device: SwupdDevice) -> None:
    device.options = ["--format=4", "--max-parallel-downloads=2"]
    device.install()


def _run(device: SwupdDevice, *words: str) -> None:
    expect(device.run(*words), Exit.OK)
