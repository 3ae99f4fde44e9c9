"""The updater's configuration, `/etc/overhaul/ostree-update.toml`: all of it optional, unknown keys refused by name.

Where updates come from is not in it: the deployment's origin file and the repository's remotes say that, as on every
OSTree device.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from overhaul.errors import InputError
from overhaul.install.countdown import MAX_ATTEMPTS
from overhaul.install.settings import HealthSettings, Seconds, SecondsOrNone, SettingsError
from overhaul.install.window import Window, parse_window
from overhaul.release.names import Size, Text

DEFAULT_PATH = Path("/etc/overhaul/ostree-update.toml")


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class NetworkSettings(_Section, frozen=True, kw_only=True):
    """How the remote is asked."""

    allow_http: bool = False
    #: Requests under way at once.
    connections: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    #: 0: as fast as it comes.
    max_bytes_per_s: Size = 0
    uses_deltas: bool = True


class DeploySettings(_Section, frozen=True, kw_only=True):
    """How a commit is deployed."""

    #: `automatic` takes our own where the boot loader reads entries, else `ostree` where it is installed.
    backend: Literal["automatic", "own", "ostree"] = "automatic"
    #: What to do when the owner and the new defaults changed the same path of /etc.
    conflicts: Literal["keep-local", "stop"] = "keep-local"
    #: Attempts that systemd-boot makes with a new deployment before it boots the old one; 0: it does not count.
    boot_attempts: Annotated[int, msgspec.Meta(ge=0, le=MAX_ATTEMPTS)] = 0
    #: Free space that an update leaves alone.
    reserve_bytes: Size = 64 << 20


class HookSettings(_Section, frozen=True, kw_only=True):
    """Programs of the device's maker: `post-apply.d/NN-name`, `post-update-check.d/NN-name`."""

    directory: Text = "/etc/overhaul/ostree-hooks"
    timeout_s: Seconds = 60.0


class RebootSettings(_Section, frozen=True, kw_only=True):
    """Whether the updater restarts the device itself."""

    policy: Literal["never", "logind"] = "logind"
    #: Local time, `HH:MM-HH:MM`; empty: any time.
    window: str = ""
    #: How long one run waits for programs that inhibit the shutdown; the service asks again later anyway.
    inhibitor_wait_s: SecondsOrNone = 60.0


class UpdateSettings(_Section, frozen=True, kw_only=True):
    """The whole file."""

    state_directory: Text = "/var/lib/overhaul-ostree"
    check_interval_s: Seconds = 900.0
    network: NetworkSettings = NetworkSettings()
    deploy: DeploySettings = DeploySettings()
    hooks: HookSettings = HookSettings()
    health: HealthSettings = HealthSettings()
    reboot: RebootSettings = RebootSettings()

    @property
    def window(self) -> Window | None:
        """The reboot window, or None for any time."""
        return parse_window(self.reboot.window) if self.reboot.window else None


def load_settings(path: Path, *, must_exist: bool) -> UpdateSettings:
    """Return the configuration in the file `path`; the defaults when it need not exist and does not.

    Raises:
        SettingsError: It cannot be used.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        if not must_exist:
            return UpdateSettings()
        raise SettingsError(path=path, reason="it is not there") from error
    except OSError as error:
        raise SettingsError(path=path, reason=error.strerror or str(error)) from error
    try:
        settings = msgspec.convert(tomllib.loads(data.decode()), UpdateSettings)
        if settings.reboot.window:
            parse_window(settings.reboot.window)
    except (ValueError, RecursionError, InputError) as error:
        raise SettingsError(path=path, reason=str(error)) from error
    return settings
