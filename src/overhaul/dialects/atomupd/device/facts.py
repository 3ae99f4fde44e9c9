"""What a query may tell of this device: nothing, unless its owner names it in the configuration.

hardware.FACT=VALUE     each fact that `Hardware` lists and this device knows
attended=True           whether somebody waits for the update
rollout=N               the device's place in phased rollouts, 0 to 99: drawn at random once and kept in the file
                        that `Rollout` names, so that a hundredth of all devices shares it
"""

import secrets
from collections.abc import Mapping
from pathlib import Path

from overhaul.dialects.atomupd.device.settings import ClientSettings
from overhaul.errors import DeviceError
from overhaul.host.files import replace_bytes
from overhaul.install.facts import read_hardware

_PLACES = 100


class RolloutPlaceError(DeviceError):
    """The device's place in rollouts cannot be kept."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The place in rollouts cannot be kept in {path}: {reason}. Correct Rollout under [Client].")


def told_facts(settings: ClientSettings, *, root: Path = Path("/")) -> Mapping[str, str]:
    """Return the parameters that the queries of this device carry."""
    facts: dict[str, str] = {}
    if settings.hardware:
        known = read_hardware(root)
        facts = {f"hardware.{name}": known[name] for name in settings.hardware if name in known}
    if settings.attended is not None:
        facts["attended"] = str(settings.attended)
    if settings.rollout_file is not None:
        facts["rollout"] = str(_place(settings.rollout_file))
    return facts


def _place(path: Path) -> int:
    try:
        text = path.read_text(errors="replace").strip()
        if text.isascii() and text.isdigit() and len(text) <= 2:
            return int(text)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RolloutPlaceError(path=path, reason=error.strerror or str(error)) from error
    place = secrets.randbelow(_PLACES)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, f"{place}\n".encode())
    except OSError as error:
        raise RolloutPlaceError(path=path, reason=error.strerror or str(error)) from error
    return place
