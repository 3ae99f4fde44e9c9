"""The seam between a client that knows which bundle it wants and whoever brings it onto the device.

Implementations: the RAUC of the device, through its command or over D-Bus, and Overhaul's own slots. What each
promises:

* `install` returns only when the next start of the device will use the new system; else it raises, and the device
  still starts the old one.
* Nothing of a bundle whose signature does not verify is used.
* It may be killed at any moment and simply be called again.
"""

from dataclasses import dataclass
from typing import Protocol

from overhaul.dialects.atomupd.device.progress import Tell
from overhaul.errors import DeviceError


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What to install, and where it is."""

    #: Address of the `.raucb`.
    url: str
    #: Address of the chunk store, without a slash at its end; None where it stands beside the bundle.
    store_url: str | None = None
    #: What the update document says the bundle is; empty when nobody said it.
    product: str = ""
    variant: str = ""
    arch: str = ""
    version: str = ""
    build_id: str = ""


class Installer(Protocol):
    """Whoever can bring a bundle onto this device."""

    def install(self, bundle: Bundle, *, tell: Tell) -> None:
        """Install `bundle`; `tell` gets progress lines.

        Raises:
            InstallationFailedError: It was tried and did not succeed.
            OverhaulError: Why it could not even be tried, or what exactly went wrong, where that is known.
        """


class InstallationFailedError(DeviceError):
    """An installation that was tried and did not succeed."""

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"Installing {url} failed: {reason}. The running system is unchanged.")
