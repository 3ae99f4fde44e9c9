"""A publisher that is killed at any durable step has published nothing or everything, and can simply run again.

At every crash point: devices get the old state or the new one, whole and verified; the same command run again ends
well; and then the repository is as if nothing had happened.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from overhaul.content.image import ImageShape, build_image
from overhaul.policy.document import Floor
from overhaul.progress import Silence
from overhaul.publishing.create import create_repository
from overhaul.publishing.opening import Repository, open_repository
from overhaul.publishing.policies import drop, set_floor, set_rollout
from overhaul.publishing.upkeep import prune_repository, refresh_repository, verify
from overhaul.repository.layout import files_of, public_key
from overhaul.trust.keyring import Keyring
from tests.crash.killing import run_killed_at
from tests.tools import need
from tests.unit.publishing.building import (
    DAY,
    MADE_AT,
    Clock,
    make_repository,
    publish_image,
    random_bytes,
    release_id,
    write_image,
)

#: No command here has so many durable steps; a guard against a loop without end.
_MANY = 2000


@dataclass
class _World:
    """A repository, and copies of it to crash in."""

    original: Path
    place: Path
    clock: Clock

    def fresh(self) -> Repository:
        """Return a new copy of the repository at the same place."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.original, self.place)
        return self.opened()

    def opened(self) -> Repository:
        """Open the copy as it is now."""
        return replace(open_repository(self.place / "repo"), clock=self.clock)


def _world(directory: Path, prepare: Callable[[Repository], None]) -> _World:
    clock = Clock()
    prepare(make_repository(directory / "original" / "repo", clock=clock))
    return _World(directory / "original", directory / "place", clock)


def _crash_everywhere(world: _World, act: Callable[[Repository], None], check: Callable[[Repository], None]) -> int:
    """Kill `act` at every crash point, check what is left, run it again and check that; return how many there were."""
    for point in range(_MANY):
        world.fresh()
        passed = run_killed_at(lambda: act(world.opened()), point)
        _assert_sound(world.opened(), f"after the kill at point {point}")
        check(world.opened())
        act(world.opened())
        _assert_sound(world.opened(), f"after the rerun at point {point}")
        if passed is not None:
            return passed
    raise AssertionError("the action never ends")


def _assert_sound(repository: Repository, when: str) -> None:
    anchor = (repository.directory / "root.json").read_bytes()
    report = verify(repository, progress=Silence(), anchor=anchor)
    assert [finding for finding in report.findings if finding.kind != "expired"] == [], when


def _versions(repository: Repository) -> set[str]:
    return {release.id.version for release in repository.published().releases.values()}


def test_a_publish_killed_anywhere_is_all_or_nothing(tmp_path: Path) -> None:
    need("mkfs.ext4")
    images = {}
    for version, changed in (("1.0", b"old"), ("1.1", b"new")):
        tree = tmp_path / version
        (tree / "usr").mkdir(parents=True)
        (tree / "usr" / "same").write_bytes(random_bytes(1, 100_000))
        (tree / "usr" / "changed").write_bytes(changed * 3000 + random_bytes(2, 60_000))
        images[version] = tmp_path / f"{version}.ext4"
        build_image(tree, images[version], shape=ImageShape(name="kiosk", timestamp=1), progress=Silence())

    def prepare(repository: Repository) -> None:
        publish_image(repository, images["1.0"], "1.0", castr=True)

    def act(repository: Repository) -> None:
        publish_image(repository, images["1.1"], "1.1", castr=True)

    def check(repository: Repository) -> None:
        assert _versions(repository) in ({"1.0"}, {"1.0", "1.1"})
        listed = repository.published().policies["kiosk/policy/stable.json"].entries
        assert {entry.version for entry in listed} == _versions(repository)

    world = _world(tmp_path, prepare)
    passed = _crash_everywhere(world, act, check)

    assert passed > 40
    done = world.opened()
    release = done.published().releases[release_id("1.1").target_path]
    assert len(release.image.deltas) == 1
    assert done.journal.entries() == []
    assert not (done.directory / "store" / "private" / "work").exists()
    hidden = [path for path in (done.directory / "store").rglob(".*") if path.name.endswith(".tmp")]
    assert hidden == []


def test_a_change_of_policy_killed_anywhere_is_all_or_nothing(tmp_path: Path) -> None:
    def prepare(repository: Repository) -> None:
        publish_image(repository, write_image(tmp_path / "a", random_bytes(1)), rollout_percent=1)

    def act(repository: Repository) -> None:
        set_rollout(repository, release_id(), channel="stable", rollout=None)

    def check(repository: Repository) -> None:
        entry = repository.published().policies["kiosk/policy/stable.json"].entry(release_id())
        assert entry is not None
        assert entry.rollout is None or entry.rollout.percent == 1

    assert _crash_everywhere(_world(tmp_path, prepare), act, check) > 8


def test_a_refresh_killed_anywhere_leaves_a_valid_repository(tmp_path: Path) -> None:
    def prepare(repository: Repository) -> None:
        publish_image(repository, write_image(tmp_path / "a", random_bytes(1)))

    world = _world(tmp_path, prepare)
    world.clock.now += 6 * DAY

    def act(repository: Repository) -> None:
        refresh_repository(repository)

    assert _crash_everywhere(world, act, lambda _repository: None) > 4


def test_a_prune_killed_anywhere_removes_only_what_nobody_needs(tmp_path: Path) -> None:
    def prepare(repository: Repository) -> None:
        publish_image(repository, write_image(tmp_path / "a", random_bytes(1)), "1.0")
        publish_image(repository, write_image(tmp_path / "b", random_bytes(2)), "1.1")
        drop(repository, release_id("1.0"), channel="stable")
        set_floor(repository, Floor(variant="shop", arch="x86_64", support="1.1"), product="kiosk", channel="stable")

    world = _world(tmp_path, prepare)

    def act(repository: Repository) -> None:
        prune_repository(repository)

    def check(repository: Repository) -> None:
        release = repository.published().releases[release_id("1.1").target_path]
        assert all(repository.storage.stat(public_key(ref.path)) for ref in files_of(release))

    assert _crash_everywhere(world, act, check) > 8
    prune_repository(world.opened())
    shutil.rmtree(world.original)
    shutil.copytree(world.place, world.original)
    world.clock.now += 15 * DAY
    assert _crash_everywhere(world, act, check) > 8


def test_an_init_killed_anywhere_is_finished_by_running_it_again(tmp_path: Path) -> None:
    place = tmp_path / "place"

    def act() -> None:
        create_repository(place / "repo", products=("kiosk",), demo_keys=True, clock=Clock())

    for point in range(_MANY):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        passed = run_killed_at(act, point)
        if passed is None:
            if not (place / "repo" / "root.json").exists():
                act()
            repository = replace(open_repository(place / "repo"), clock=Clock())
            _assert_sound(repository, f"at point {point}")
            assert Keyring.open(repository.keys_directory).role_names
        else:
            assert passed > 30
            return
    raise AssertionError("the action never ends")


_PUBLISHER = """
import sys
from pathlib import Path
from overhaul.cli import cli
from overhaul.errors import BusyError
try:
    cli(["publish", sys.argv[2], "--repository", sys.argv[1], "--product", "kiosk", "--variant", "shop",
         "--arch", "x86_64", "--channel", "stable", "--build-id", "1", "--version", sys.argv[3], "--workers", "1"],
        standalone_mode=False)
except BusyError as error:
    print(error)
    sys.exit(8)
"""


@pytest.mark.parametrize("round_number", range(3))
def test_two_publishers_at_once_do_not_harm_each_other(tmp_path: Path, round_number: int) -> None:
    create_repository(tmp_path / "repo", products=("kiosk",), demo_keys=True)
    children = {}
    for version in ("1.0", "1.1"):
        image = write_image(tmp_path / version, random_bytes(int(version[-1]) + 2 * round_number, 3_000_000))
        command = [sys.executable, "-c", _PUBLISHER, str(tmp_path / "repo"), str(image), version]
        children[version] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = {version: child.communicate()[0] for version, child in children.items()}
    published = {version for version, child in children.items() if child.returncode == 0}

    assert published
    for version, child in children.items():
        assert child.returncode in {0, 8}
        assert child.returncode == 0 or "/repo/store is in use by " in said[version]
    repository = open_repository(tmp_path / "repo")
    assert verify(repository, progress=Silence()).findings == ()
    assert _versions(repository) == published


def test_the_clock_of_these_tests_is_later_than_their_files(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a", b"x")

    assert image.stat().st_mtime < MADE_AT
