"""Power cuts all over an update, for each boot loader, and a device's own configuration from initrd to initrd.

`make guests` runs it, which takes about half an hour.

What is modelled: the machine is killed at a random moment, and its disk keeps by chance any part of what was written
and not flushed, sector by sector (`volatile_disk`). What is not: a sector that is torn in itself, a medium that lies
about a flush, power cuts that damage what is not being written, and the loss of the firmware's own variables.

`SEED=N make guests` draws the moments again that were drawn with that number; how they fall depends on the machine.
"""

import os
import random
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from overhaul.publishing.boot_partition import Loader
from tests.guests.configured import (
    Story,
    prepare_configured_system,
    publish_both,
    require_carried_over,
    require_gone_back,
)
from tests.guests.initrds import made_by_dracut, made_by_initramfs_tools
from tests.guests.power_cuts import GOOD_PHASES, SICK_PHASES, Life, choose_phases, live
from tests.guests.scene import GOOD_CHANNEL, SICK_CHANNEL, Scene, opened_scene

GOOD_CUTS, SICK_CUTS = 22, 9


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with opened_scene(tmp_path_factory.mktemp("guests"), with_sick=True) as opened:
        yield opened


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("loader", list(Loader))
def test_a_device_always_comes_up_and_ends_well(
    scene: Scene, loader: Loader, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("SEED") or secrets.randbits(32))
    chance = random.Random(seed)
    lives: list[Life] = []

    def tell(text: str) -> None:
        with capsys.disabled():
            print(f"    {text}", flush=True)

    tell(f"\n    seed {seed}, {loader}")
    for channel, phases, wanted in ((GOOD_CHANNEL, GOOD_PHASES, GOOD_CUTS), (SICK_CHANNEL, SICK_PHASES, SICK_CUTS)):
        made = 0
        while made < wanted:
            life = live(scene, loader, channel, choose_phases(phases, wanted - made, chance), chance, tell=tell)
            tell(life.summary())
            lives.append(life)
            made += len(life.cuts)
    cuts = [cut for life in lives for cut in life.cuts]
    tell(f"{loader}: {len(cuts)} power cuts, {sum(len(life.starts) for life in lives)} starts came up")
    assert len(cuts) >= GOOD_CUTS + SICK_CUTS >= 30


@pytest.mark.timeout(7200)
def test_configuration_is_carried_from_an_initrd_of_initramfs_tools_to_one_of_dracut(tmp_path: Path) -> None:
    system = prepare_configured_system(tmp_path / "system")
    kernel = system.kernel.parents[1]
    repository = publish_both(
        system,
        tmp_path,
        first=made_by_initramfs_tools(kernel, tmp_path / "initramfs-tools"),
        second=made_by_dracut(kernel, tmp_path / "dracut", with_systemd=True),
    )
    require_carried_over(Story(repository, tmp_path, Loader.GRUB))


@pytest.mark.timeout(7200)
def test_a_new_system_whose_initrd_lays_no_layer_is_left_and_the_old_one_has_its_configuration(tmp_path: Path) -> None:
    system = prepare_configured_system(tmp_path / "system")
    initrd = made_by_initramfs_tools(system.kernel.parents[1], tmp_path / "initramfs-tools")
    repository = publish_both(system, tmp_path, first=initrd, second=None)
    require_gone_back(Story(repository, tmp_path, Loader.SYSTEMD_BOOT))
