"""What the guest runs as its device: the product's own agent on real slots, a real boot loader and a real network.

It does in one process what `overhaul-confirm.service` and `overhaul-agent.timer` do after a start: confirm, update,
restart. Only the telling is added: each line tells the test outside which step begins or ends, so that it can cut the
power in the middle of one.
"""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from overhaul.agent.confirming import confirm
from overhaul.agent.looking import status
from overhaul.agent.outcomes import Checked
from overhaul.agent.updating import update
from overhaul.agent.wiring import open_device
from overhaul.errors import OverhaulError
from overhaul.install.boot import BootControl, SlotBootState
from overhaul.install.health import UnhealthyError
from overhaul.install.settings import load_settings
from overhaul.install.state import Phase
from overhaul.progress import Silence


def tell(line: str) -> None:
    """Write a line to the console, past every buffer."""
    os.write(1, f"\nGUEST {line}\n".encode())


class TellingBoot:
    """A boot control that tells what it is asked to change."""

    def __init__(self, boot: BootControl) -> None:
        self._boot = boot

    def booted(self) -> str:
        return self._boot.booted()

    def boot_id(self) -> str:
        return self._boot.boot_id()

    def primary(self) -> str:
        return self._boot.primary()

    def state(self, slot: str) -> SlotBootState:
        return self._boot.state(slot)

    def require_ready(self, slot: str) -> None:
        self._boot.require_ready(slot)

    def mark_bad(self, slot: str) -> None:
        self._change("mark-bad", lambda: self._boot.mark_bad(slot), "assemble")

    def try_next(self, slot: str, *, attempts: int) -> None:
        self._change("try-next", lambda: self._boot.try_next(slot, attempts=attempts), "armed")

    def mark_good(self, slot: str) -> None:
        self._change("mark-good", lambda: self._boot.mark_good(slot), "marked-good")

    def _change(self, name: str, change: Callable[[], None], afterwards: str) -> None:
        tell(f"phase {name}")
        change()
        tell(f"phase {afterwards}")


def live(configuration: Path) -> str:
    """Live once, and return what comes next: `reboot` or `poweroff`."""
    device = open_device(load_settings(configuration))
    device = replace(device, boot=TellingBoot(device.boot))
    release = Path("/release").read_text().strip()
    early = Path("/run/initrd-release").read_text().strip()
    looked = status(device)
    target = looked.slots[device.boot.booted()]
    tell(f"up slot={device.boot.booted()} release={release} initrd={early} phase={looked.phase} boot={target.status}")
    if looked.phase is Phase.GIVING_UP:
        return "reboot"
    try:
        if looked.phase is Phase.TRIAL:
            tell("phase confirm")
            confirm(device)
        tell("phase update")
        done = update(device, progress=Silence())
    except UnhealthyError:
        tell("phase given-up")
        return "reboot"
    if not isinstance(done, Checked):
        return "reboot"
    state = device.boot.state(device.boot.booted())
    primary = device.boot.primary()
    tell(f"done slot={device.boot.booted()} release={release} boot={state.status} primary={primary}")
    return "poweroff"


def main() -> None:
    """Live once and say how the machine should go on."""
    try:
        following = live(Path(sys.argv[1]))
    except OverhaulError as error:
        # A device tries again at its next hour; here that is the next start.
        tell(f"trouble {type(error).__name__}: {error}")
        following = "reboot"
    except BaseException:
        traceback.print_exc()
        tell("defect")
        following = "poweroff"
    tell(f"phase {following}")
    Path("/run/following").write_text(following)


if __name__ == "__main__":
    main()
