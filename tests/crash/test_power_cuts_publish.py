"""Power cuts at every moment of a publish, with what was not synced lost, reordered or torn.

The real `overhaul publish` is recorded. In every state that a power cut can leave, a device that trusts the old
metadata must get the old release or the new one, whole; publishing again must end well, and then the repository must
be one that `verify` has nothing to say about. `make crash` looks at many more states than the few here.
"""

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from overhaul.content.image import ImageShape, build_image
from overhaul.errors import OverhaulError
from overhaul.progress import Silence
from overhaul.publishing.upkeep import verify
from tests.crash.acting import act, make_device, open_agent
from tests.crash.disk import LOST, Naming, Place, PowerCut, Recording, Sync, Tree, power_cuts, tree_digest, unsynced
from tests.crash.loaders import FileLoader
from tests.crash.recording import Recorder
from tests.fleet import PRODUCT, RealRepository
from tests.tools import need

IS_THOROUGH = os.environ.get("OVERHAUL_POWER_CUTS") == "all"
SAMPLES = 6000 if IS_THOROUGH else 200
#: Every such state is published into again; every one that devices see differently is updated from.
FINISH_EVERY = 3 if IS_THOROUGH else 90
UPDATE_EVERY = 1 if IS_THOROUGH else 20
#: What a publish works in, and the lock, whose bytes only inform.
SCRATCH = ("store/private/work", "store/private/lock")
PUBLIC = "store/public"
#: The file that moves a release to the fleet.
TIMESTAMP = "store/public/metadata/timestamp.json"
LOADER = FileLoader()


@dataclass
class Publisher:
    """A repository with one release, a second image, and a device that trusts the repository as it is."""

    directory: Path
    repository: RealRepository
    images: dict[str, Path]
    device: Path

    def argv(self, top: Path, *, program: tuple[str, ...] = ("-m", "overhaul")) -> list[str]:
        """Return the command that publishes the second release."""
        return [sys.executable, *program, "publish", str(self.images["2.0"]), "--repository", str(top),
                "--product", PRODUCT, "--variant", "lite", "--arch", "amd64", "--channel", "stable",
                "--version", "2.0", "--build-id", "b2.0", "--castr", "--workers", "1"]  # fmt: skip

    def record_after_kill(self, recorder: Recorder, point: int) -> Recording:
        """Kill the recorded publish before operation `point`, publish again, and return what both did."""
        again = recorder.killed_at(point)
        again.run(self.argv(again.top), log=self.directory / "strace.log")
        return again.recording

    def record(self, *, program: tuple[str, ...] = ("-m", "overhaul")) -> Recorder:
        """Publish the second release in a copy of the repository, and record what is done there."""
        directory = self.directory / "recorded"
        shutil.rmtree(directory, ignore_errors=True)
        keys = self.repository.opened.keys_directory
        shutil.copytree(self.repository.directory, directory / "repository")
        shutil.copytree(keys, directory / keys.name)
        recorder = Recorder(directory / "repository", scratch=SCRATCH)
        recorder.run(self.argv(recorder.top, program=program), log=self.directory / "strace.log")
        return recorder


@pytest.fixture(scope="module")
def publisher() -> Iterator[Publisher]:
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="overhaul-crash-", dir=memory if memory.is_dir() else None)).resolve()
    repository = RealRepository(directory / "repository")
    images = {version: _image(directory, version) for version in ("1.0", "2.0")}
    repository.publish(images["1.0"], "1.0")
    device = directory / "device"
    make_device(device, LOADER, root=repository.root, image=images["1.0"])
    (device / "slot-B.img").write_bytes(b"rubbish!" * (images["1.0"].stat().st_size // 8))
    act(open_agent(device, repository.public, LOADER, is_sick=lambda: False), "check")
    yield Publisher(directory, repository, images, device)
    shutil.rmtree(directory)


def _image(directory: Path, version: str) -> Path:
    need("mkfs.ext4")
    tree = directory / f"tree-{version}"
    tree.mkdir()
    (tree / "same").write_bytes(random.Random("same").randbytes(90_000))
    (tree / "changed").write_bytes(random.Random("changed").randbytes(30_000) + version.encode() * 2000)
    image = directory / f"{version}.ext4"
    build_image(tree, image, shape=ImageShape(name="weather", timestamp=1), progress=Silence())
    return image


@dataclass
class Looker:
    """Looks at the states of a repository."""

    publisher: Publisher
    recording: Recording
    published: set[str] = field(default_factory=set)
    states: int = 0
    updated: int = 0
    finished: int = 0
    _before: Tree = field(init=False)
    _seen: set[bytes] = field(default_factory=set)
    _seen_by_devices: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._before = self.recording.tree(0, {})

    def look_at_all(self, cuts: Iterator[PowerCut]) -> None:
        """Check what each of `cuts` leaves."""
        for cut in cuts:
            self.look_at(cut)

    def look_at(self, cut: PowerCut) -> None:
        """Check what `cut` leaves, unless it was seen before."""
        tree = self.recording.tree(cut.point, cut.fates)
        whole = tree_digest(tree, without=SCRATCH)
        if whole in self._seen:
            return
        self._seen.add(whole)
        self.states += 1
        shown = tree_digest({path: content for path, content in tree.items() if path.startswith(PUBLIC)})
        is_new = shown not in self._seen_by_devices
        self._seen_by_devices.add(shown)
        has_moved = tree.get(TIMESTAMP) != self._before.get(TIMESTAMP)
        finishes = self.states % FINISH_EVERY == 0
        if not finishes and not (is_new and (has_moved or len(self._seen_by_devices) % UPDATE_EVERY == 0)):
            return
        try:
            self._look_at(tree, finishes=finishes)
        except Exception as error:
            error.add_note(cut.told(self.recording))
            raise

    def _look_at(self, tree: Tree, *, finishes: bool) -> None:
        place = self.publisher.directory / "place"
        top = place / "repository"
        Place(top).lay(tree)
        try:
            self.published.add(self._update(top))
            self.updated += 1
            if finishes:
                self._finish(place, top)
        finally:
            shutil.rmtree(place)

    def _update(self, top: Path) -> str:
        """Let a device that trusts the old metadata do all it can; return what it runs or may run then."""
        device = self.publisher.directory / "place/device"
        shutil.copytree(self.publisher.device, device)
        agent = open_agent(device, top / PUBLIC, LOADER, is_sick=lambda: False)
        act(agent, "update")
        version = "2.0" if agent.boot.primary() == "B" else "1.0"
        slot = agent.slots[agent.boot.primary()].path
        assert slot.read_bytes() == self.publisher.images[version].read_bytes(), f"not the whole {version}"
        shutil.rmtree(device)
        return version

    def _finish(self, place: Path, top: Path) -> None:
        """Publish again, and demand a repository without a fault whose devices get the new release."""
        self.finished += 1
        keys = self.publisher.repository.opened.keys_directory
        shutil.copytree(keys, place / keys.name)
        repository = RealRepository(top)
        repository.publish(self.publisher.images["2.0"], "2.0")
        anchor = (top / "root.json").read_bytes()
        assert verify(repository.opened, progress=Silence(), anchor=anchor).findings == ()
        assert self._update(top) == "2.0"
        assert repository.opened.journal.entries() == []


def test_a_publish_whose_power_is_cut_anywhere_shows_old_or_new_and_can_be_done_again(
    publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = publisher.record().recording

    looker = Looker(publisher, recording)
    looker.look_at_all(power_cuts(recording, seed=1, samples=SAMPLES))

    with capsys.disabled():
        print(
            f"\n    publish: {len(recording.operations)} operations, {looker.states} different states, "
            f"{looker.updated} updated from, {looker.finished} published into again"
        )
    assert looker.published == {"1.0", "2.0"}
    assert looker.states > 500
    assert looker.finished >= 5
    _require_lasting(recording)


def _require_lasting(recording: Recording) -> None:
    """Demand that a publish that has ended is wholly durable."""
    point = len(recording.operations)
    fates = dict.fromkeys(unsynced(recording)[-1], LOST)
    done, left = recording.tree(point, {}), recording.tree(point, fates)
    lost = [path for path, content in done.items() if path.startswith(PUBLIC) and left.get(path, ...) != content]
    assert not lost, PowerCut(point, fates).told(recording)


def test_a_publish_after_a_killed_one_rests_on_nothing_that_is_not_durable(publisher: Publisher) -> None:
    recorder = publisher.record()
    # Before each of these syncs something is there for the next publisher to see, and not durable.
    points = [
        number
        for number, operation in enumerate(recorder.recording.operations)
        if isinstance(operation, Sync) and isinstance(recorder.recording.operations[number - 1], Naming)
    ]
    for point in points if IS_THOROUGH else points[:: len(points) // 4]:
        recording = publisher.record_after_kill(recorder, point)
        _require_lasting(recording)


#: A publisher that never syncs.
_UNSYNCED = """
import os
os.fsync = lambda descriptor: None
from overhaul.cli import cli
cli()
"""


def test_a_publisher_that_does_not_sync_is_found(publisher: Publisher) -> None:
    recording = publisher.record(program=("-c", _UNSYNCED)).recording
    looker = Looker(publisher, recording)
    with pytest.raises((AssertionError, OverhaulError)) as found:
        looker.look_at_all(power_cuts(recording, seed=1, samples=200))
    assert any("the power was cut after" in note for note in found.value.__notes__)
