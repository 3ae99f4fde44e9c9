"""The one place that turns the client's configuration into the parts of a run."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from overhaul.dialects.atomupd.candidates import Update
from overhaul.dialects.atomupd.device.installing import Installer
from overhaul.dialects.atomupd.device.progress import Tell
from overhaul.dialects.atomupd.device.rauc import (
    RaucCommand,
    RaucConfiguration,
    apply_configuration,
    ensure_seed,
    read_rauc_configuration,
    with_store,
)
from overhaul.dialects.atomupd.device.raucbus import RaucBus
from overhaul.dialects.atomupd.device.raucstate import booted_slot_device
from overhaul.dialects.atomupd.device.runtime import RuntimeFiles
from overhaul.dialects.atomupd.device.settings import ClientSettings, Era, Method
from overhaul.dialects.atomupd.device.updating import Client
from overhaul.host.processes import ProgramFailedError, ProgramMissingError, run

#: There on every system that systemd runs.
SYSTEMD_RUNTIME = Path("/run/systemd/system")
_TEMPORARY = Path("/tmp")  # noqa: S108 - what is mounted there, not a file in it


def open_client(settings: ClientSettings, *, tell: Tell, warn: Tell, fallback_after: int = 0) -> Client:
    """Return the client that `settings` describe.

    Args:
        settings: The configuration.
        tell: Takes lines for standard output.
        warn: Takes what went wrong and does not matter for the outcome.
        fallback_after: With more failures than this RAUC's fallback configuration is taken; 0 never.
    """
    files = RuntimeFiles(settings.runtime_directory, now=lambda: datetime.now(UTC))

    def installer(store_url: str | None) -> Installer:
        if settings.method is Method.SLOTS:
            from overhaul.dialects.atomupd.device.slots import open_slots

            return open_slots(settings)
        _make_room(warn)
        if settings.era is Era.NEWEST:
            _prepare_rauc(settings, files, fallback_after=fallback_after, store_url=store_url)
        return RaucCommand() if settings.method is Method.RAUC_COMMAND else RaucBus()

    def estimate(update: Update) -> Update:
        from overhaul.dialects.atomupd.device.estimating import with_sizes

        return with_sizes(update, settings, warn=warn)

    return Client(settings=settings, files=files, open_installer=installer, estimate=estimate, tell=tell)


def _prepare_rauc(settings: ClientSettings, files: RuntimeFiles, *, fallback_after: int, store_url: str | None) -> None:
    """Give RAUC the configuration it shall use, and desync its seed."""
    standard = settings.rauc_configuration
    path = standard
    fallback = settings.rauc_fallback_configuration
    if fallback_after and files.failures > fallback_after and fallback.exists():
        path = fallback
    configuration = read_rauc_configuration(path) if path.exists() else None
    if configuration is None:
        # RAUC itself says what it lacks; a service may have been given another file.
        return
    if store_url is not None:
        configuration = with_store(configuration, store_url=store_url, path=files.directory / "rauc.conf")
    if SYSTEMD_RUNTIME.is_dir():
        apply_configuration(configuration, standard=standard)
    _seed(configuration, booted=lambda: Path(booted_slot_device()))


def _seed(configuration: RaucConfiguration, *, booted: Callable[[], Path]) -> None:
    if configuration.uses_desync:
        ensure_seed(configuration, booted_device=booted())


def _make_room(warn: Tell) -> None:
    """Let the directory that RAUC downloads to use all memory there is: bundles are bigger than half of it."""
    if not os.path.ismount(_TEMPORARY):
        return
    try:
        run(["mount", "-o", "remount,size=100%,nr_inodes=1g", _TEMPORARY, _TEMPORARY])
    except (ProgramFailedError, ProgramMissingError) as error:
        warn(str(error))
