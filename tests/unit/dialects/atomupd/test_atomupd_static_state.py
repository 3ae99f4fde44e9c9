"""A run of the static server that finds nothing to do says so without reading anything, and never when there is."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.atomupd_pools import put_image, write_configuration
from tests.waiting import until

from overhaul.dialects.atomupd import pool as pools
from overhaul.dialects.atomupd import static_generator, static_state
from overhaul.dialects.atomupd.static_cli import main

_ANSWER = "holo/steamos/amd64/steamdeck/stable/3.7.1/20240101.0.json"


class _Site:
    def __init__(self, directory: Path) -> None:
        self.pool, self.tree, self.file = directory / "pool", directory / "tree", directory / "s.conf"
        self.tree.mkdir()
        put_image(self.pool, "3.7.1", "20240101")
        put_image(self.pool, "3.7.2", "20240102")
        put_image(self.pool, "3.7.3", "20240103", shadow_checkpoint=True, introduces_checkpoint=1)
        write_configuration(self.file, self.pool, Branches="stable")

    @property
    def answer(self) -> Path:
        return self.tree / _ANSWER

    def only(self, suffix: str) -> Path:
        return next(path for path in sorted(self.pool.rglob(f"*20240102*{suffix}")))

    def let_the_clock_tick(self) -> None:
        """Wait until what is written now gets a later time than what was; file systems count in ticks."""
        probe = self.pool.parent / "probe"

        def written_at() -> int:
            probe.write_bytes(b"")
            return probe.stat().st_ctime_ns

        last = written_at()
        until(written_at, lambda now: now > last)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Site:
    # A test's files are all new; what that means stands in a test of its own.
    monkeypatch.setattr(static_state, "UNSETTLED_NS", -(10**10))
    monkeypatch.setattr(pools, "_UNSETTLED_NS", -(10**10))
    site = _Site(tmp_path)
    monkeypatch.chdir(site.tree)
    return site


@pytest.fixture
def works(site: _Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Return whether a run does its whole work."""
    made: list[Path] = []
    generate = static_generator.StaticGenerator.generate

    def counting(self: static_generator.StaticGenerator) -> object:
        made.append(self.root)
        return generate(self)

    monkeypatch.setattr(static_generator.StaticGenerator, "generate", counting)

    def run() -> bool:
        before = len(made)
        main(["-c", str(site.file)])
        site.let_the_clock_tick()
        return len(made) > before

    return run


def test_a_second_run_reads_nothing_and_says_so(
    site: _Site, works: Callable[[], bool], caplog: pytest.LogCaptureFixture
) -> None:
    assert works()
    with caplog.at_level(logging.INFO):
        assert not works()
    assert "nothing has changed" in caplog.text
    assert (site.tree / ".static-state.json").stat().st_mode & 0o777 == 0o600


_CHANGES: dict[str, Callable[[_Site], object]] = {
    "an image comes": lambda site: put_image(site.pool, "3.7.4", "20240104"),
    "a manifest is written over": lambda site: put_image(site.pool, "3.7.2", "20240102", skip=True),
    "a bundle goes": lambda site: site.only(".raucb").unlink(),
    "a store goes": lambda site: site.only(".castr").rmdir(),
    "a directory comes": lambda site: (site.pool / "steamos/more").mkdir(),
    "an answer goes": lambda site: site.answer.unlink(),
    "an answer is forged, its size and time kept": lambda site: _forge(site.answer),
    "an answer of a shadow comes": lambda site: _put(site.tree / _ANSWER.replace("3.7.1/20240101", "3.7.3/20240103")),
    "the configuration has another option": lambda site: write_configuration(
        site.file, site.pool, Branches="stable", Unstable="yes"
    ),
    "the note is no note": lambda site: (site.tree / ".static-state.json").write_bytes(b"[]"),
    "the note is cut": lambda site: os.truncate(site.tree / ".static-state.json", 100),
}


def _forge(path: Path) -> None:
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"3.7.2", b"9.9.9"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{}")


@pytest.mark.parametrize("change", _CHANGES)
def test_whatever_changes_is_worked_in(site: _Site, works: Callable[[], bool], change: str) -> None:
    assert works()
    assert not works()
    _CHANGES[change](site)
    assert works()


def test_a_forged_answer_is_mended(site: _Site, works: Callable[[], bool]) -> None:
    works()
    right = site.answer.read_bytes()
    _forge(site.answer)
    assert site.answer.read_bytes() != right
    works()
    assert site.answer.read_bytes() == right


def test_another_version_of_the_program_works_anew(works: Callable[[], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    works()
    monkeypatch.setattr(static_state, "_program", lambda: [["static_tree.py", 1, 1]])
    assert works()


def test_problems_are_told_by_every_run(site: _Site, works: Callable[[], bool]) -> None:
    (site.pool / "bad.manifest.json").write_text("{")
    assert works()
    assert works()


def test_a_linked_bundle_can_vanish_unseen_so_the_pool_is_always_walked(site: _Site, works: Callable[[], bool]) -> None:
    bundle = site.only(".raucb")
    bundle.rename(site.pool.parent / "elsewhere")
    bundle.symlink_to(site.pool.parent / "elsewhere")
    assert works()
    assert works()


def test_what_changed_just_now_is_not_noted(
    site: _Site, works: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_state, "UNSETTLED_NS", 10**12)
    assert works()
    assert not (site.tree / ".static-state.json").exists()
    assert works()
