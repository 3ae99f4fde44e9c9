"""A provisioned disk whose owner configures the device, in a guest: the way of /etc through real restarts.

tests/scenario/test_configuration.py has all that may become of a file. `make guests` tells the same story with GRUB,
and with an update from an initrd of initramfs-tools to one of dracut.
"""

from pathlib import Path

import pytest

from overhaul.publishing.boot_partition import Loader
from overhaul.publishing.factory_layer import require_laying_initrd
from tests.guests.configured import Story, prepare_configured_system, publish_both, require_carried_over
from tests.guests.initrds import made_by_dracut, made_by_initramfs_tools
from tests.guests.system import GuestSystem


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> GuestSystem:
    return prepare_configured_system(tmp_path_factory.mktemp("configured") / "system")


@pytest.mark.timeout(3600)
def test_what_an_owner_configured_comes_along_and_going_back_brings_back_what_was(
    system: GuestSystem, tmp_path: Path
) -> None:
    initrd = made_by_initramfs_tools(system.kernel.parents[1], tmp_path / "initrd")
    repository = publish_both(system, tmp_path, first=initrd, second=initrd)

    require_carried_over(Story(repository, tmp_path, Loader.SYSTEMD_BOOT))


def test_what_dracut_makes_of_the_shipped_module_lays_layers(system: GuestSystem, tmp_path: Path) -> None:
    require_laying_initrd(made_by_dracut(system.kernel.parents[1], tmp_path / "dracut"), name="dracut's")
