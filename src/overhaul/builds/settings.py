"""What an operator says about images on demand: the file `builds.toml`."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from overhaul.builds.debian_archives import DEFAULT_SOURCES
from overhaul.errors import OperatorError

SETTINGS_FILE = "builds.toml"
_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_MiB = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]


class QueueTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[queue]`."""

    #: SQLAlchemy address; empty: SQLite in `directory`.
    database: str = ""
    #: `leases`, or `procrastinate` on PostgreSQL.
    kind: Literal["leases", "procrastinate"] = "leases"
    waiting: _Count = 200
    waiting_of_client: _Count = 20
    lease_seconds: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 60.0
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3


class LimitsTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits]`: of one build."""

    time_minutes: _Positive = 20.0
    cpu_minutes: _Positive = 60.0
    memory_mib: _MiB = 3072
    processes: _Count = 1024
    disk_mib: _MiB = 8192


class RetentionTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[retention]`."""

    with_defaults_minutes: _Positive = 30.0
    with_versions_days: _Positive = 7.0
    other_hours: _Positive = 24.0
    failure_minutes: _Positive = 60.0
    store_mib: _MiB = 51_200
    logs_days: _Positive = 14.0


class OpenWrtTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[openwrt]`."""

    enabled: bool = False
    upstream_url: str = "https://downloads.openwrt.org"
    allow_http: bool = False
    #: Files with usign public keys, and OpenPGP keyrings with the fingerprints in them that count.
    usign_keys: tuple[str, ...] = ()
    keyrings: tuple[str, ...] = ()
    fingerprints: tuple[str, ...] = ()
    #: Whether an ImageBuilder may fetch packages while it resolves and installs them.
    network: bool = True


class DebianTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[debian]`."""

    enabled: bool = False
    #: Lines of a sources.list; `{suite}` stands for the version that was asked for.
    sources: tuple[str, ...] = DEFAULT_SOURCES


class SignerTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[signer]`."""

    #: usign secret key; only the signer's process reads it.
    key: str = ""
    socket: str = ""
    #: Repository in which Debian images are published, and the channel; empty: they are not.
    repository: str = ""
    channel: str = "stable"


class BuildSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. Relative paths are below the file's directory."""

    #: Where artefacts, ImageBuilders, archives and the database lie.
    directory: str = "builds"
    queue: QueueTable = QueueTable()
    limits: LimitsTable = LimitsTable()
    retention: RetentionTable = RetentionTable()
    openwrt: OpenWrtTable = OpenWrtTable()
    debian: DebianTable = DebianTable()
    signer: SignerTable = SignerTable()


class UnusableSettingsError(OperatorError):
    """A `builds.toml` that is absent or wrong."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be used: {reason}. docs/reference/builds.md lists what it may say.")


def load_settings(path: Path) -> BuildSettings:
    """Return what `path` says; raise `UnusableSettingsError` when it says nothing usable."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=BuildSettings)
    except FileNotFoundError as error:
        raise UnusableSettingsError(path=path, reason="it does not exist") from error
    except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UnusableSettingsError(path=path, reason=str(error)) from error
