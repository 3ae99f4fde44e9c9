"""Power cuts at every moment of an update, a confirmation and a roll back, with what is not durable lost or torn.

The real agent is recorded (`tests.crash.recording`), the states that a power cut can leave are worked out
(`tests.crash.disk`), and each is started (`tests.crash.power_cuts`). `make crash` looks at all of them, more than
10 000 for each boot loader, and brings each to its end; otherwise every fifth is looked at, and one of each kind and
a sample is brought to its end.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.broken import BROKEN
from tests.crash.disk import power_cuts
from tests.crash.loaders import LOADERS
from tests.crash.power_cuts import (
    BrokenPromiseError,
    Checker,
    Tally,
    World,
    check_after_kills,
    check_scenario,
    make_world,
    points_before_syncs,
    scenarios_named,
    scenarios_of,
    scratch,
)

IS_THOROUGH = os.environ.get("OVERHAUL_POWER_CUTS") == "all"
FINISH_EVERY = 1 if IS_THOROUGH else 200
#: The long ones, which write a slot, get most of the samples.
SAMPLES = 3000 if IS_THOROUGH else 500
STATES = 10_000 if IS_THOROUGH else 1000
#: Without `make crash` only every n-th power cut is looked at.
STRIDE = 1 if IS_THOROUGH else 5


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="overhaul-crash-", dir=memory if memory.is_dir() else None))
    yield make_world(directory)
    shutil.rmtree(directory)


@pytest.mark.parametrize("name", LOADERS)
def test_a_device_whose_power_is_cut_anywhere_starts_a_whole_release_and_comes_to_its_end(
    world: World, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Tally()
    for seed, scenario in enumerate(scenarios_of(LOADERS[name])):
        if scenario.name == "update" and not IS_THOROUGH:
            # "call off" begins with the same.
            continue
        tally, recorder = check_scenario(
            world,
            LOADERS[name],
            scenario,
            seed=seed,
            samples=SAMPLES,
            finish_every=FINISH_EVERY,
            stride=STRIDE,
        )
        whole += tally
        operations = len(recorder.recording.operations)
        with capsys.disabled():
            print(
                f"\n    {name}, {scenario.name}: {operations} operations, {tally.essential} states, "
                f"{tally.finished} brought to their end",
                end="",
            )
        shutil.rmtree(recorder.top)
    with capsys.disabled():
        print(f"\n    {name}: {whole.essential} different states, {whole.finished} brought to their end")
    assert whole.essential >= STATES
    assert set(whole.booted) == {"1.0", "2.0", "3.0"}


@pytest.mark.parametrize("name", LOADERS)
def test_a_power_cut_after_a_kill_finds_nothing_resting_on_what_was_not_synced(world: World, name: str) -> None:
    for scenario in (
        scenarios_of(LOADERS[name]) if IS_THOROUGH else scenarios_named(["update over a good slot", "roll back"])
    ):
        recorder, top = world.record(LOADERS[name], scenario)
        points = points_before_syncs(recorder.recording, (*LOADERS[name].files, "state/state.json"))
        assert len(points) >= 3
        chosen = points if IS_THOROUGH else points[1::3]
        tally = check_after_kills(
            world, LOADERS[name], scenario, recorder, chosen, finish_every=FINISH_EVERY, stride=STRIDE
        )
        shutil.rmtree(top)
        assert tally.states >= len(chosen)


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_that_only_a_power_cut_shows_is_found(world: World, name: str) -> None:
    (scenario,) = scenarios_named(["update over a good slot"])
    recorder, top = world.record(BROKEN[name], scenario)
    with scratch(world.directory / "place") as place:
        checker = Checker(world, BROKEN[name], scenario, place)
        cuts = power_cuts(recorder.recording, seed=1, samples=200)
        with pytest.raises(BrokenPromiseError, match="the power was cut after") as found:
            checker.look_at(recorder.recording, cuts, finish_every=1_000_000)
    shutil.rmtree(top)
    assert BROKEN[name].mistake in str(found.value)
