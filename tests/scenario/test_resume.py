"""Interrupted at random, again and again, an update fetches what it lacks and hardly anything twice.

The releases hold files that the device packs again, in groups. Segments are small here, so that a small image has many
of them: what an interruption may cost is one segment, and what was under way in buffers.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.asgi import running
from tests.fleet import RealDevice, RealRepository
from tests.hostile_network import Network, honest, network
from tests.interruptions import Tally, interrupted, packed_image, undisturbed_bytes, update_once

from overhaul.content import bydelta
from overhaul.content.delta import grouping, packing, rebuilding
from overhaul.content.delta.groups import Group
from overhaul.server.app import create_app
from overhaul.server.settings import ServerSettings
from overhaul.transfer import curl

_SIZE_KIB = 3 * 1024
_WINDOW_BYTES = 64 * 1024
#: What lies between the network and the agent: the kernel's receive buffer, libcurl's, and two pieces under way.
_BUFFERS_BYTES = 192 * 1024


@dataclass(frozen=True)
class Scene:
    """A repository with one release more than the device has, and another one to come."""

    repository: RealRepository
    factory: RealDevice
    up: Network
    images: list[Path]
    #: Those that are published, the newest last.
    published: list[Path]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("resume")
    images = [packed_image(directory, version, size_kib=_SIZE_KIB) for version in range(3)]
    repository = RealRepository(directory / "repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MAX_SEGMENT_DECODED", _WINDOW_BYTES)
        patch.setattr(grouping, "_SHARED_SIZE", 256 * 1024)
        patch.setattr(bydelta, "IN_FLIGHT_BYTES", _WINDOW_BYTES)
        patch.setattr(curl, "_BUFFER_BYTES", 32 * 1024)
        repository.publish(images[0], "1.0")
        published = repository.publish(images[1], "1.1")
        assert len(published.release.image.deltas[0].rebuilds) > 2
        settings = ServerSettings.of_repository(repository.directory)
        with running(create_app(settings)) as site, network(site.port, honest) as up:
            factory = RealDevice.make(
                directory / "factory",
                url=up.url,
                root=repository.root,
                image=images[0],
                version="1.0",
                slot_size=_SIZE_KIB * 1024,
            )
            yield Scene(repository, factory, up, images, images[:2])


def _interrupted(scene: Scene, device: RealDevice, *, seed: int, **options: object) -> Tally:
    return interrupted(
        device,
        scene.up,
        cut_within_bytes=30_000,
        kill_within_bytes=100_000,
        kill_within_steps=100,
        chance=random.Random(seed),
        kills_at_most=12,
        **options,  # type: ignore[arg-type]  # whatever a test varies
    )


def test_cut_and_killed_at_random_it_fetches_one_window_more_for_each(scene: Scene, tmp_path: Path) -> None:
    ideal = undisturbed_bytes(scene.factory.copy(tmp_path / "undisturbed"), scene.up)
    total = Tally()
    # How often an update is killed before it is done depends on how the machine runs its threads: more of them follow
    # until there was enough of everything.
    for seed in itertools.count():
        device = scene.factory.copy(tmp_path / f"device{seed}")
        tally = _interrupted(scene, device, seed=seed)
        assert device.slot("B").read_bytes() == scene.published[-1].read_bytes()
        # What a cut loses was never sent; what a kill loses was in a window or a buffer.
        assert tally.body_bytes <= ideal + tally.kills * (_WINDOW_BYTES + _BUFFERS_BYTES)
        total.kills += tally.kills
        total.cuts += tally.cuts
        if seed > 0 and total.kills > 10 and total.cuts > 20:
            break


def test_killed_while_it_packs_files_again_it_goes_on_with_the_next_group(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every group but the one under way is kept."""
    ideal = undisturbed_bytes(scene.factory.copy(tmp_path / "undisturbed"), scene.up)
    device = scene.factory.copy(tmp_path / "device")
    real = rebuilding.rebuild
    begun: list[bytes] = []

    class Killed(BaseException):
        """The agent dies here."""

    def dying(group: Group, *arguments: object, **options: object) -> object:
        begun.append(group.sha256)
        is_last = len(begun) % 2 == 0
        outcome = real(group, *arguments, **options)  # type: ignore[arg-type]  # passed on as they come
        if is_last:
            raise Killed
        return outcome

    monkeypatch.setattr(bydelta, "rebuild", dying)
    scene.up.personality = honest
    runs = 0
    received: list[int] = []
    while True:
        runs += 1
        before = scene.up.body_bytes
        try:
            update_once(device)
        except Killed:
            received.append(scene.up.body_bytes - before)
            continue
        received.append(scene.up.body_bytes - before)
        break
    assert runs > 2
    assert device.slot("B").read_bytes() == scene.published[-1].read_bytes()
    # No group is made twice: all that comes again lay in buffers.
    assert sum(received) <= ideal + runs * _BUFFERS_BYTES
    assert len(begun) == len(set(begun)) > 4


def test_a_newer_release_in_the_middle_costs_no_more_than_itself(scene: Scene, tmp_path: Path) -> None:
    published_at: list[int] = []

    def publish_meanwhile(kills: int) -> None:
        if kills == 4:
            published_at.append(scene.up.body_bytes)
            scene.repository.publish(scene.images[2], "1.2")
            scene.published.append(scene.images[2])

    for seed in itertools.count(7):
        device = scene.factory.copy(tmp_path / f"device{seed}")
        began = scene.up.body_bytes
        tally = _interrupted(scene, device, seed=seed, at_kill=publish_meanwhile)
        end = scene.up.body_bytes
        if published_at:
            break
        # It was done before it was killed that often.
    assert device.slot("B").read_bytes() == scene.images[2].read_bytes()
    ideal = undisturbed_bytes(scene.factory.copy(tmp_path / "undisturbed"), scene.up)
    assert published_at[0] > began
    assert end - published_at[0] <= ideal + (tally.kills - 4) * (_WINDOW_BYTES + _BUFFERS_BYTES)
