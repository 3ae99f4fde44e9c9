"""A real update in a guest with UEFI firmware and systemd-boot, and the power is cut in the middle of it.

This is the short form: up to three cuts, one loader. The whole is in whole.py (`make guests`). Where a cut lands
depends on how fast the machine is; one that is late lands in a later phase, or finds the device at its end.
"""

import random
import secrets
from pathlib import Path

import pytest

from overhaul.publishing.boot_partition import Loader
from tests.guests.power_cuts import live
from tests.guests.scene import GOOD_CHANNEL, opened_scene

PHASES = ["assemble", "try-next", "trial-firmware"]


@pytest.mark.timeout(1800)
def test_an_update_whose_power_is_cut_again_and_again_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = secrets.randbits(32)
    with opened_scene(tmp_path, with_sick=False) as scene:
        life = live(scene, Loader.SYSTEMD_BOOT, GOOD_CHANNEL, PHASES, random.Random(seed))
    with capsys.disabled():
        print(f"\n    seed {seed}: {life.summary()}")
    assert 1 <= len(life.cuts) <= len(PHASES)
