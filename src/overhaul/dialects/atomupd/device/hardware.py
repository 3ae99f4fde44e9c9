"""The facts that a query may tell of this device: none, unless its owner names them in the configuration."""

from collections.abc import Mapping
from pathlib import Path

from overhaul.dialects.atomupd.device.settings import ClientSettings
from overhaul.install.facts import read_hardware


def told_facts(settings: ClientSettings, *, root: Path = Path("/")) -> Mapping[str, str]:
    """Return the parameters that the queries of this device carry."""
    facts: dict[str, str] = {}
    if settings.hardware:
        known = read_hardware(root)
        facts = {f"hardware-{name}": known[name] for name in settings.hardware if name in known}
    if settings.attended is not None:
        facts["attended"] = "true" if settings.attended else "false"
    return facts
