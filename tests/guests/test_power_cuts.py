"""A real update in a guest with UEFI firmware and systemd-boot, and the power is cut in the middle of it.

This is the short form: up to three cuts, one loader. The whole is in whole.py (`make guests`). Where a cut lands
depends on how fast the machine is; one whose moment its phase did not last to lands at the end of that.
"""

import random
import secrets
from pathlib import Path

import pytest

from overhaul.publishing.boot_partition import Loader
from tests.guests.machine import Guest
from tests.guests.power_cuts import Life, _one_start, live
from tests.guests.scene import GOOD_CHANNEL, opened_scene

PHASES = ["assemble", "try-next", "trial-firmware"]


class QuickGuest(Guest):
    """Stands in for a guest whose phases take no time."""

    def __init__(self) -> None:
        self.console = []
        self.is_off = False
        self._left = iter(["phase assemble", "phase try-next", "phase armed", "phase reboot"])

    def told(self, deadline: float | None = None) -> str | None:
        return next(self._left, None)

    def cut_power(self) -> None:
        self.is_off = True


def test_a_machine_that_is_faster_than_expected_loses_its_power_all_the_same() -> None:
    guest, life = QuickGuest(), Life(Loader.SYSTEMD_BOOT, GOOD_CHANNEL)

    cut = _one_start(life, guest, ["assemble"], random.Random(1), is_trial=False)

    assert cut is not None
    assert cut[0] == "assemble"
    assert guest.is_off


@pytest.mark.timeout(3600)
def test_an_update_whose_power_is_cut_again_and_again_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = secrets.randbits(32)
    with opened_scene(tmp_path, with_sick=False) as scene:
        life = live(scene, Loader.SYSTEMD_BOOT, GOOD_CHANNEL, PHASES, random.Random(seed))
    with capsys.disabled():
        print(f"\n    seed {seed}: {life.summary()}")
    assert 1 <= len(life.cuts) <= len(PHASES)
