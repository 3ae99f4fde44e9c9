"""What a guest runs as its device to see its configuration carried over: one step of the story in each start.

    slot A, never updated      the owner configures the device, updates it, and configures a little more
    slot B, on trial           it is confirmed, configured in the new system, and then told to go back
    slot A again               nothing more

A new system that is not healthy is left at once.
Each start tells what /etc shows. Before the device goes down it does what `overhaul-carry.service` does then.
"""

import json
import sys
import traceback
from pathlib import Path

from overhaul.agent.configuring import carry_again
from overhaul.agent.confirming import confirm
from overhaul.agent.going_back import roll_back
from overhaul.agent.looking import history, status
from overhaul.agent.outcomes import Updated
from overhaul.agent.ports import Device
from overhaul.agent.updating import update
from overhaul.agent.wiring import open_device
from overhaul.install.health import UnhealthyError
from overhaul.install.settings import load_settings
from overhaul.progress import Silence

_ETC = Path("/etc")


def tell(line: str) -> None:
    """Write a line to the console."""
    print(f"\nGUEST {line}", flush=True)


def shown() -> dict[str, str]:
    """Return the files below /etc with what is in them."""
    return {
        str(path.relative_to(_ETC)): path.read_text() for path in sorted(_ETC.rglob("*")) if path.is_file()
    }  # fmt: skip


def live(device: Device) -> str:
    """Live once, and return what comes next: `reboot` or `poweroff`."""
    booted = device.boot.booted()
    release = Path("/release").read_text().strip()
    tell(f"shown {json.dumps({'slot': booted, 'release': release, 'etc': shown()})}")
    if not history(device):
        (_ETC / "hostname").write_text("kitchen\n")
        (_ETC / "dials.conf").write_text("brightness = 9\n")
        (_ETC / "sshd_config").write_text((_ETC / "sshd_config").read_text().replace("Port 22\n", "Port 2222\n"))
        (_ETC / "dull").unlink()
        done = update(device, progress=Silence())
        assert isinstance(done, Updated), done
        tell(f"updated {json.dumps({'way': done.way, 'bytes': done.bytes_received})}")
        (_ETC / "late").write_text("changed while the restart waited\n")
    elif booted == "B":
        try:
            confirmed = confirm(device)
        except UnhealthyError as error:
            tell(f"unhealthy {json.dumps({'failed': [one.detail for one in error.results if not one.passed]})}")
            return "reboot"
        tell(f"confirmed {json.dumps({'slot': confirmed.slot, 'checks': [one.name for one in confirmed.checks]})}")
        (_ETC / "dials.conf").write_text("brightness = 1\n")
        (_ETC / "only-in-b").write_text("not in A\n")
        roll_back(device)
    else:
        told = status(device)
        tell(f"end {json.dumps({'slot': booted, 'phase': told.phase})}")
        return "poweroff"
    tell(f"carried {json.dumps({'again': carry_again(device)})}")
    return "reboot"


def main() -> None:
    """Live once and say how the machine should go on."""
    following = "poweroff"
    try:
        following = live(open_device(load_settings(Path(sys.argv[1]))))
    except BaseException:
        tell(f"defect {json.dumps(traceback.format_exc())}")
        raise
    finally:
        Path("/run/following").write_text(following)


if __name__ == "__main__":
    main()
