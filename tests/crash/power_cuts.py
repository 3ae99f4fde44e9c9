"""Cutting the power of a device wherever it can be cut, and starting it again.

For every state that a power cut can leave (`tests.crash.disk`) it is demanded that

* the loader starts a slot, and that slot holds a release, byte for byte;
* every other slot that the loader would start holds one too;
* the agent can read its state, and `device status` answers;
* what a device does at every start (confirm, update, restart when asked) leads to the end that was wanted, with the
  running slot confirmed.

The first three are looked at in every state, the last one in as many as there is time for: always once for each
state of all that is not the bytes of a slot, and in every state by `make crash`.
"""

import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from overhaul.agent.looking import status
from overhaul.agent.ports import Device
from overhaul.errors import OverhaulError
from overhaul.install.boot import BootControl, SlotStatus
from overhaul.install.state import Phase, StateFile
from tests.crash.acting import act, make_device, open_agent, write_image
from tests.crash.disk import LOST, Content, Place, PowerCut, Recording, Sync, Tree, power_cuts, tree_digest, unsynced
from tests.crash.loaders import SLOTS, Loader
from tests.crash.recording import Recorder
from tests.fleet import RealRepository

#: What python-tuf and shutil do in the scratch copy decides nothing, so it does not make a state another one.
SCRATCH = ("state/trust/working",)
STATE = "state/state.json"
_STARTS = 8


@dataclass(frozen=True)
class Scenario:
    """One thing a device does, and where it must end."""

    name: str
    #: What was done before, durably; `start` is a start of the device.
    before: tuple[str, ...]
    actions: tuple[str, ...]
    #: The version that runs in the end.
    goal: str
    #: The newest version that is published by then.
    published: str = "2.0"
    is_sick: bool = False
    #: Whether it ends there with a loader on a partition without a journal, too.
    is_for_weak: bool = True


SCENARIOS = (
    Scenario("first update", (), ("update",), "2.0"),
    Scenario("update", ("check",), ("update",), "2.0"),
    Scenario("update over a good slot", ("update", "start", "confirm", "publish 3.0"), ("update",), "3.0", "3.0"),
    # Cut by halves, systemd-boot's renaming loses the entry, and the version counts as one that did not come up.
    Scenario("count an attempt", ("update",), ("start",), "2.0", is_for_weak=False),
    Scenario("confirm", ("update", "start"), ("confirm",), "2.0"),
    Scenario("give up", ("update", "start"), ("confirm",), "1.0", is_sick=True),
    Scenario("roll back", ("update", "start", "confirm"), ("roll-back",), "1.0"),
    Scenario("roll back a trial", ("update", "start"), ("roll-back",), "1.0"),
    Scenario("confirm after rolling back", ("update", "start", "confirm", "roll-back", "start"), ("confirm",), "1.0"),
    Scenario("call off", ("check",), ("update", "roll-back"), "1.0"),
)


class BrokenPromiseError(AssertionError):
    """A power cut after which the device is not what it must be."""


@dataclass
class Tally:
    """How many states were looked at."""

    states: int = 0
    #: Different even when the scratch directory is not looked at.
    essential: int = 0
    finished: int = 0
    booted: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.states + other.states,
            self.essential + other.essential,
            self.finished + other.finished,
            self.booted + other.booted,
        )


def make_world(directory: Path) -> "World":
    """Publish three releases, and keep the public tree as it is after each."""
    repository = RealRepository(directory / "repository")
    images, public = {}, {}
    for version in ("1.0", "2.0", "3.0"):
        images[version] = write_image(directory / f"{version}.img", version)
        repository.publish(images[version], version)
        public[version] = directory / f"public-{version}"
        shutil.copytree(repository.public, public[version])
    return World(directory, repository.root, images, public)


@dataclass
class World:
    """The releases, the repository at each time, and a place for devices."""

    directory: Path
    root: Path
    #: Version to image.
    images: Mapping[str, Path]
    #: Version to the public tree in which it is the newest.
    public: Mapping[str, Path]

    def __post_init__(self) -> None:
        self.digests = {Content(image.read_bytes()).digest: version for version, image in self.images.items()}

    def prepared(self, loader: Loader, scenario: Scenario, top: Path) -> None:
        """Make the device of `scenario` as it is before its actions."""
        make_device(top, loader, root=self.root, image=self.images["1.0"])
        published = "2.0"
        for step in scenario.before:
            if step == "start":
                loader.start(top)
            elif step.startswith("publish "):
                published = step.removeprefix("publish ")
            else:
                act(open_agent(top, self.public[published], loader, is_sick=lambda: False), step)

    def record(self, loader: Loader, scenario: Scenario) -> tuple[Recorder, Path]:
        """Do the actions of `scenario` under the recorder."""
        top = self.directory / f"{loader.name}-{scenario.name}".replace(" ", "-").replace(":", "")
        self.prepared(loader, scenario, top)
        recorder = Recorder(top, weak=loader.weak, scratch=SCRATCH)
        self.run(recorder, loader, scenario)
        return recorder, top

    def run(self, recorder: Recorder, loader: Loader, scenario: Scenario) -> None:
        """Do the actions of `scenario` on the device as it is now, and record them."""
        sick = ("sick",) if scenario.is_sick else ()
        argv = (sys.executable, "-m", "tests.crash.acting", loader.name, str(recorder.top),
                str(self.public[scenario.published]), *sick, *scenario.actions)  # fmt: skip
        recorder.run(argv, log=self.directory / "strace.log")


@dataclass
class Checker:
    """Looks at the states of one scenario with one loader."""

    world: World
    loader: Loader
    scenario: Scenario
    place: Path
    tally: Tally = field(default_factory=Tally)
    _seen: set[bytes] = field(default_factory=set)
    _essential: set[bytes] = field(default_factory=set)
    _brought_to_an_end: set[bytes] = field(default_factory=set)
    _decisions: dict[bytes, tuple[str, tuple[str, ...]]] = field(default_factory=dict)

    def look_at(self, recording: Recording, cuts: Iterator[PowerCut], *, finish_every: int) -> Tally:
        """Check what each of `cuts` leaves; raise `BrokenPromiseError` with the story of the first bad one."""
        for cut in cuts:
            tree = recording.tree(cut.point, cut.fates)
            whole = tree_digest(tree)
            if whole in self._seen:
                continue
            self._seen.add(whole)
            self.tally.states += 1
            essential = tree_digest(tree, without=SCRATCH)
            self._essential.add(essential)
            self.tally.essential = len(self._essential)
            try:
                kind = self._require_bootable(tree)
                if kind not in self._brought_to_an_end or self.tally.states % finish_every == 0:
                    self._brought_to_an_end.add(kind)
                    self._require_an_end(tree)
            except (AssertionError, OverhaulError, OSError) as error:
                story = f"{self.loader.name}, {self.scenario.name}: {type(error).__name__}: {error}"
                raise BrokenPromiseError(f"{story}\n{cut.told(recording)}") from error
        return self.tally

    def require_lasting(self, recording: Recording) -> None:
        """Demand that what a command did is durable when it has ended."""
        point = len(recording.operations)
        cut = PowerCut(point, dict.fromkeys(unsynced(recording)[-1], LOST))
        done, left = recording.tree(point, {}), recording.tree(point, cut.fates)
        for path, content in done.items():
            is_left_over = Path(path).name.startswith(".")
            if not is_left_over and path.startswith((*self.loader.files, "slot-", STATE)) and left.get(path) != content:
                story = f"{self.loader.name}, {self.scenario.name}: {path} is not durable when the command has ended"
                raise BrokenPromiseError(f"{story}\n{cut.told(recording)}")

    def _require_bootable(self, tree: Tree) -> bytes:
        """Demand that the loader finds a whole release in each slot that it would start.

        Return what tells this device from others, its slots and its copies of published files left aside.
        """
        told = {
            path: content
            for path, content in tree.items()
            if path.startswith((*self.loader.files, STATE)) or f"{path}/" in self.loader.files
        }
        told |= {"state": None} if "state" in tree else {}
        key = tree_digest(told)
        if key not in self._decisions:
            self._decisions[key] = self._decided(told)
        booted, bootable = self._decisions[key]
        for slot in {booted, *bootable}:
            content = tree.get(f"slot-{slot}.img")
            assert content is not None, f"slot {slot} is gone"
            version = self.world.digests.get(content.digest)
            assert version is not None, (
                f"slot {slot}, which {'was started' if slot == booted else 'may be started'}, holds no whole release"
            )
            if slot == booted:
                self.tally.booted[version] += 1
        return key

    def _decided(self, told: Tree) -> tuple[str, tuple[str, ...]]:
        top = self.place / "decision"
        Place(top).lay(told)
        control = self.loader.control(top)
        bootable = tuple(slot for slot in SLOTS if control.state(slot).status is not SlotStatus.BAD)
        booted = self.loader.start(top)
        assert any(control.state(slot).status is SlotStatus.GOOD for slot in SLOTS), "no slot is good"
        if STATE in told:
            StateFile(top / "state").load()
        return booted, bootable

    def _require_an_end(self, tree: Tree) -> None:
        """Demand that the device comes to the end of its scenario."""
        self.tally.finished += 1
        top = self.place / "device"
        Place(top).lay(tree)
        self.loader.start(top)
        for _ in range(_STARTS):
            self._live(top)
            device = self._agent(top)
            told = status(device)
            running = self._running(device)
            if (
                running == self.scenario.goal == told.running.version
                and told.phase is Phase.IDLE
                and device.boot.state(told.running_slot).status is SlotStatus.GOOD
                and told.next_slot == told.running_slot
            ):
                return
            self.loader.start(top)
        raise AssertionError(
            f"after {_STARTS} starts the device runs {running} ({told.phase}), and not {self.scenario.goal} for good"
        )

    def _live(self, top: Path) -> None:
        """Do what is done at each start: the services, and what a person goes on wanting."""
        act(self._agent(top), "confirm")
        if any(action == "roll-back" for action in (*self.scenario.before, *self.scenario.actions)):
            self._go_back(top)
        device = self._agent(top)
        if device.boot.state(device.boot.booted()).status is SlotStatus.GOOD:
            act(device, "update")

    def _go_back(self, top: Path) -> None:
        """Ask for the roll back again, as a person does who sees that it did not come about."""
        told = status(self._agent(top))
        is_refused = "2.0" in {refused.version for refused in told.refused}
        if told.running.version == "1.0" and not is_refused:
            act(self._agent(top), "update")
            told = status(self._agent(top))
        if (told.phase in {Phase.AWAITING_REBOOT, Phase.TRIAL} and not is_refused) or (
            told.running.version == "2.0" and told.phase is Phase.IDLE
        ):
            act(self._agent(top), "roll-back")

    def _agent(self, top: Path) -> Device:
        return open_agent(
            top,
            self.world.public[self.scenario.published],
            self.loader,
            is_sick=lambda: self.scenario.is_sick and self._running_in(top, self.loader.control(top)) != "1.0",
        )

    def _running(self, device: Device) -> str:
        return self._running_in(device.slots["A"].path.parent, device.boot)

    def _running_in(self, top: Path, boot: BootControl) -> str:
        content = Content((top / f"slot-{boot.booted()}.img").read_bytes())
        return self.world.digests.get(content.digest, "no whole release")


def check_scenario(
    world: World, loader: Loader, scenario: Scenario, *, seed: int, samples: int, finish_every: int, stride: int
) -> tuple[Tally, Recorder]:
    """Record a scenario and look at its states.

    With a `stride` above 1 only every n-th power cut is looked at, and scratch files are left aside.
    """
    recorder, _top = world.record(loader, scenario)
    recording = recorder.recording if stride == 1 else recorder.recording.essential()
    with scratch(world.directory / "place") as place:
        checker = Checker(world, loader, scenario, place)
        checker.require_lasting(recording)
        cuts = islice(power_cuts(recording, seed=seed, samples=samples), 0, None, stride)
        return checker.look_at(recording, cuts, finish_every=finish_every), recorder


def check_after_kills(
    world: World,
    loader: Loader,
    scenario: Scenario,
    recorder: Recorder,
    points: Sequence[int],
    *,
    finish_every: int,
    stride: int,
) -> Tally:
    """Kill the program before each of `points`, do it again, and look at the states a power cut leaves of both.

    What a killed program wrote and did not sync is seen by the next one as if it were durable, and is not.
    """
    with scratch(world.directory / "place") as place:
        checker = Checker(world, loader, scenario, place)
        for point in points:
            again = recorder.killed_at(point)
            world.run(again, loader, scenario)
            checker.require_lasting(again.recording)
            recording = again.recording if stride == 1 else again.recording.essential()
            after = len(recording.operations) - (len(again.recording.operations) - point)
            cuts = (cut for cut in power_cuts(recording, seed=0, samples=0) if cut.point >= after)
            checker.look_at(recording, islice(cuts, 0, None, stride), finish_every=finish_every)
        return checker.tally


def points_before_syncs(recording: Recording, paths: Sequence[str]) -> list[int]:
    """Return where something below `paths` was done and is about to be synced."""
    return [
        number
        for number, operation in enumerate(recording.operations)
        if isinstance(operation, Sync) and any(path in recording.labels[number - 1] for path in paths)
    ]


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """Yield a directory that is there for the block only."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    yield place
    shutil.rmtree(place)


def scenarios_of(loader: Loader) -> list[Scenario]:
    """Return what a device with this loader does."""
    return [scenario for scenario in SCENARIOS if scenario.is_for_weak or not loader.weak]


def scenarios_named(names: Sequence[str]) -> list[Scenario]:
    """Return the scenarios with these names."""
    return [scenario for scenario in SCENARIOS if scenario.name in names]
