"""The whole way of a halt: real devices report to a real server, one pass signs, and devices stop.

Time does not pass here; the publisher looks later than it is.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from tests.asgi import running
from tests.fleet import RealDevice, RealRepository, release_id, small_image

from overhaul.agent import reporting
from overhaul.agent.checking import check
from overhaul.agent.confirming import confirm
from overhaul.agent.looking import history
from overhaul.agent.outcomes import Checked, Updated
from overhaul.agent.updating import update
from overhaul.install.boot import SlotStatus
from overhaul.install.state import EventKind
from overhaul.policy.health import Evidence
from overhaul.policy.rollout import Rollout
from overhaul.policy.selection import Hold
from overhaul.progress import Silence
from overhaul.publishing.opening import open_repository
from overhaul.publishing.policies import set_rollout
from overhaul.publishing.rollouts import AskForEvidence, Looked, steer_rollouts
from overhaul.server.app import create_app
from overhaul.server.database.engine import Database
from overhaul.server.settings import ServerSettings
from overhaul.server.update_health import evidence_of

SIZE = 256 << 10
HOUR_S = 3600
PLAN = """
[products.weather.rollout]
stages = [50, 100]
proof_above_percent = 100
soak_hours = 1
silence_grace_hours = 2
"""


class _World:
    """A repository with a release under way, its server, and devices."""

    def __init__(self, directory: Path, url: str, repository: RealRepository) -> None:
        self._directory = directory
        self._url = url
        self.repository = repository
        self._devices = 0

    def device(self) -> RealDevice:
        """Return a new device that runs 1.0 and reports."""
        self._devices += 1
        made = RealDevice.make(
            self._directory / f"device-{self._devices}",
            url=self._url,
            root=self.repository.root,
            image=self._directory / "1.0.img",
            version="1.0",
            slot_size=SIZE,
        )
        text = made.configuration.read_text()
        assert text.count('url = ""') == 1
        made.configuration.write_text(text.replace('url = ""', f'url = "{self._url}/api/v1/reports"'))
        return made

    def look(self, *, hours: float) -> Looked:
        """Make a pass as if so many hours had gone by."""
        opened = open_repository(self.repository.directory)
        later = opened.clock() + hours * HOUR_S
        with _evidence(self.repository.directory) as ask:
            (looked,) = steer_rollouts(dataclasses.replace(opened, clock=lambda: later), ask)
        return looked

    def open_to(self, percent: float) -> None:
        """Let an operator set the percentage."""
        opened = open_repository(self.repository.directory)
        set_rollout(opened, release_id("1.1"), channel="stable", rollout=Rollout(percent=percent))


@contextmanager
def _evidence(directory: Path) -> Iterator[AskForEvidence]:
    database = Database(ServerSettings.of_repository(directory).database_url)

    try:
        yield partial(evidence_of, database)
    finally:
        database.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_World]:
    # A report is given up soon, since it is worth little; here every one is counted.
    monkeypatch.setattr(reporting, "_TIMEOUT_S", 300.0)
    repository = RealRepository(tmp_path / "repository")
    with (repository.directory / "overhaul.toml").open("a") as file:
        file.write(PLAN)
    repository = RealRepository(repository.directory)
    for version in ("1.0", "1.1"):
        repository.publish(small_image(tmp_path / f"{version}.img", version, size=SIZE), version)
    settings = dataclasses.replace(ServerSettings.of_repository(repository.directory), ask_storage_every_s=0.0)
    with running(create_app(settings)) as site:
        world = _World(tmp_path, site.url.rstrip("/"), repository)
        world.open_to(100)
        world.look(hours=0)
        yield world


def _updated(device: RealDevice) -> RealDevice:
    assert isinstance(update(device.device, progress=Silence()), Updated)
    return device


def test_devices_that_stay_away_halt_the_release_for_all_others(world: _World) -> None:
    waiting, *_lost = [_updated(world.device()) for _device in range(5)]

    assert world.look(hours=1).evidence == Evidence(open=5)
    halted = world.look(hours=3)

    assert halted.is_halted
    assert halted.signed
    assert halted.evidence == Evidence(lost=5)
    answer = check(world.device().device)
    assert isinstance(answer.decision, Hold)
    assert "was halted: 5 of 5 updates failed (5 devices did not come back" in answer.decision.reasons[0].text
    # One of them had only waited for its restart; it does not make it any more.
    assert isinstance(update(waiting.device, progress=Silence()), Checked)
    assert waiting.boot.state("B").status is SlotStatus.BAD
    assert history(waiting.device)[-1].kind is EventKind.CANCELLED


def test_devices_that_come_back_keep_a_release_going(world: _World) -> None:
    for _device in range(3):
        device = _updated(world.device())
        device.boot.simulate_boot()
        confirm(device.device)

    looked = world.look(hours=3)

    assert looked.evidence == Evidence(confirmed=3, confirmed_and_settled=3)
    assert not looked.is_halted
    assert isinstance(update(world.device().device, progress=Silence()), Updated)


def test_devices_that_fall_back_by_themselves_are_counted_when_they_say_so(world: _World) -> None:
    fallen = _updated(world.device())
    for _attempt in range(4):
        fallen.boot.simulate_boot()
    update(fallen.device, progress=Silence())

    assert world.look(hours=0).evidence == Evidence(rolled_back=1)


def test_an_operator_opens_a_halted_release_again(world: _World) -> None:
    for _device in range(5):
        _updated(world.device())
    assert world.look(hours=3).is_halted

    world.open_to(100)

    assert isinstance(update(world.device().device, progress=Silence()), Updated)
