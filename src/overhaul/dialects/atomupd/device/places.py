"""Where the daemon keeps what, and which configuration it takes.

/etc/steamos-atomupd/        client-dev.conf, else client.conf; preferences.conf; remote-info.conf
/usr/lib/steamos-atomupd/    client.conf for systems whose /etc is empty
/run/atomupd-daemon/         atomupd-updates.json: the last answer; client.pid: the client that runs
/run/steamos-atomupd/        reboot_for_update: what waits for a restart; builds-VARIANT.json
/var/lib/steamos-branch      one word of the past, taken over once
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Places:
    """All of it, below a root that tests move."""

    root: Path = Path("/")

    @property
    def configuration_directory(self) -> Path:
        """Where the owner's files are."""
        return self.root / "etc/steamos-atomupd"

    @property
    def configuration(self) -> Path:
        """The configuration that counts."""
        kept = self.configuration_directory
        choices = (kept / "client-dev.conf", kept / "client.conf", self.root / "usr/lib/steamos-atomupd/client.conf")
        return next((path for path in choices if path.exists()), choices[1])

    @property
    def is_dev(self) -> bool:
        """Whether a developer's configuration is in force."""
        return self.configuration.name == "client-dev.conf"

    @property
    def preferences(self) -> Path:
        """What the owner chose."""
        return self.configuration_directory / "preferences.conf"

    @property
    def remote_info(self) -> Path:
        """What the server said can be chosen."""
        return self.configuration_directory / "remote-info.conf"

    @property
    def runtime(self) -> Path:
        """The daemon's own runtime directory."""
        return self.root / "run/atomupd-daemon"

    @property
    def answer(self) -> Path:
        """The last answer of the server."""
        return self.runtime / "atomupd-updates.json"

    @property
    def client_pid(self) -> Path:
        """The client under way."""
        return self.runtime / "client.pid"

    @property
    def shared_runtime(self) -> Path:
        """The directory that client and daemon share."""
        return self.root / "run/steamos-atomupd"

    @property
    def reboot_marker(self) -> Path:
        """Says which build waits for a restart: `BUILDID[-VERSION]`."""
        return self.shared_runtime / "reboot_for_update"

    @property
    def legacy_choice(self) -> Path:
        """Where clients of the past kept the branch."""
        return self.root / "var/lib/steamos-branch"
