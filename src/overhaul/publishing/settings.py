"""The configuration of a repository: `overhaul.toml`, read once into a record that cannot be wrong.

Relative paths in it are taken from the directory it lies in. An unknown key is refused by its name, because a
misspelt setting that is silently ignored is found too late.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from overhaul.dialects.asu.settings import AsuSettings
from overhaul.dialects.atomupd.settings import AtomupdSettings
from overhaul.dialects.ostree.settings import OstreeSettings
from overhaul.dialects.swupd.settings import SwupdSettings
from overhaul.errors import InputError, OperatorError
from overhaul.policy.steering import RolloutPlan
from overhaul.release.channels import Channels
from overhaul.release.names import Name, Text
from overhaul.repository.opening import StorageAddress
from overhaul.trust import roles
from overhaul.trust.keys import KeyCount, KeyPlan
from overhaul.trust.roles import Lifetimes

SETTINGS_FILE = "overhaul.toml"

_Days = Annotated[float, msgspec.Meta(gt=0, le=36500)]
_Keys = Annotated[int, msgspec.Meta(ge=1, le=64)]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every table of the file has in common."""


class LifetimeSettings(_Record, frozen=True, kw_only=True):
    """How long each kind of signature lasts, in days."""

    root: _Days = 365
    targets: _Days = 365
    product: _Days = 365
    policy: _Days = 90
    builds: _Days = 90
    snapshot: _Days = 7
    timestamp: _Days = 2

    def as_lifetimes(self) -> Lifetimes:
        """Return them as the metadata editor takes them."""
        return Lifetimes(
            root=timedelta(days=self.root),
            targets=timedelta(days=self.targets),
            product=timedelta(days=self.product),
            policy=timedelta(days=self.policy),
            builds=timedelta(days=self.builds),
            snapshot=timedelta(days=self.snapshot),
            timestamp=timedelta(days=self.timestamp),
        )


class ThresholdSettings(_Record, frozen=True, kw_only=True):
    """How many keys `init` makes for a kind of role, and how many of them must sign."""

    keys: _Keys = 1
    threshold: _Keys = 1


class DeltaSettings(_Record, frozen=True, kw_only=True):
    """Which deltas a publish makes by itself."""

    #: How many of the newest older releases of the channel get a delta to the new one.
    sources: Annotated[int, msgspec.Meta(ge=0, le=32)] = 2
    #: How many damaged blocks of 4 KiB a device can mend in a chunk without fetching it; see `content.mending`.
    mended_blocks: Annotated[int, msgspec.Meta(ge=0, le=8)] = 2


class RetentionSettings(_Record, frozen=True, kw_only=True):
    """What stays in a repository."""

    #: How many of the newest releases of a variant and arch a channel lists at least; a publish leaves out older ones
    #: that no device needs. 0: all of them. Products in a dialect that shows older releases (atomupd) keep all.
    listed_releases: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 32
    #: Files that nothing names are removed once they are this old; a device may still follow an earlier answer.
    grace_days: _Days = 14


class ProductSettings(_Record, frozen=True, kw_only=True):
    """One product."""

    #: The most stable first.
    channels: tuple[Name, ...] = Channels().names
    #: Write a casync chunk store (`.castr`) and index beside every release.
    castr: bool = False
    keys: ThresholdSettings = ThresholdSettings()
    policy_keys: ThresholdSettings = ThresholdSettings()
    #: How rollouts go on by themselves and what halts them; without the table nothing looks after them.
    rollout: RolloutPlan | None = None
    #: The dialects of other systems' clients that its releases are published in.
    swupd: SwupdSettings | None = None
    ostree: OstreeSettings | None = None
    atomupd: AtomupdSettings | None = None


class OidcSettings(_Record, frozen=True, kw_only=True):
    """An identity provider that vouches for operators."""

    #: Its https address, exactly as its tokens name it.
    issuer: Annotated[str, msgspec.Meta(min_length=1)]
    client_id: Annotated[str, msgspec.Meta(min_length=1)]
    #: A file with the client's secret; empty for a public client, which PKCE alone protects.
    client_secret_file: str = ""
    #: Where the provider sends the browser back: the dashboard's https address and `/login/oidc/back`.
    redirect_url: Annotated[str, msgspec.Meta(min_length=1)]
    #: The claim that is an operator's name; take one that people cannot change themselves.
    name_claim: Annotated[str, msgspec.Meta(min_length=1)] = "preferred_username"
    scope: str = "openid profile"
    #: What the button says.
    label: Annotated[str, msgspec.Meta(min_length=1, max_length=60)] = "Sign in with single sign-on"
    #: PEM file with the authorities to trust instead of the system's.
    ca_file: str = ""
    #: Speak plain http to it; only for a provider on this very machine.
    allow_http: bool = False


class OperatorSettings(_Record, frozen=True, kw_only=True):
    """Signing in, and changing what channels offer from the dashboard."""

    #: Whether one can sign in; without it the dashboard is open to whoever reaches the server, and changes nothing.
    enabled: bool = False
    #: A session ends when it was not used for so long, and after so many hours in any case.
    idle_minutes: Annotated[int, msgspec.Meta(ge=1, le=1440)] = 30
    session_hours: Annotated[int, msgspec.Meta(ge=1, le=168)] = 12
    #: The socket of `overhaul operator desk`, which carries changes out.
    desk: Annotated[str, msgspec.Meta(min_length=1, max_length=90)] = "server/desk/socket"
    #: The audit log; only ever added to.
    audit: Annotated[str, msgspec.Meta(min_length=1)] = "server/audit.jsonl"
    #: Start the desk beside the server; better run it as a unit of its own, under a user who alone can read the keys.
    run_desk: bool = False
    oidc: OidcSettings | None = None


class ServerTable(_Record, frozen=True, kw_only=True):
    """How `overhaul serve` serves the repository."""

    #: The heading of the status page.
    title: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] = "Overhaul"
    #: `sqlite:///FILE` or `postgresql://USER@HOST/NAME`; empty means SQLite in this directory's `server/`.
    database: str = ""
    #: Where clients reach a bucket's `public/` themselves: big files are redirected there.
    redirect_to: str = ""
    #: Take reports from devices whose owners allow them.
    reports: bool = True
    reports_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 60
    reports_kept_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 90
    warn_before_expiry_hours: Annotated[float, msgspec.Meta(ge=0, le=8760)] = 12
    #: Configuration files of image pools whose atomupd queries are answered too.
    atomupd_pools: tuple[str, ...] = ()
    #: The file that says how images on demand are built.
    builds: Annotated[str, msgspec.Meta(min_length=1)] = "builds.toml"
    #: Workers, and one signer for them, started beside the server; 0 where they run on their own.
    build_workers: Annotated[int, msgspec.Meta(ge=0, le=64)] = 1
    operators: OperatorSettings = OperatorSettings()


class Settings(_Record, frozen=True, kw_only=True):
    """Everything in `overhaul.toml`."""

    storage: StorageAddress
    #: The directory of private keys, outside of the repository.
    keys: Text
    #: Where devices reach the public tree; only printed and handed to devices.
    public_url: str = ""
    products: dict[Name, ProductSettings]
    root_keys: ThresholdSettings = ThresholdSettings(keys=3, threshold=2)
    targets_keys: ThresholdSettings = ThresholdSettings(keys=3, threshold=2)
    lifetimes: LifetimeSettings = LifetimeSettings()
    deltas: DeltaSettings = DeltaSettings()
    retention: RetentionSettings = RetentionSettings()
    server: ServerTable = ServerTable()
    #: Images on demand for attended sysupgrade; without the table they are not served.
    asu: AsuSettings | None = None

    def product(self, name: str) -> ProductSettings:
        """Return the settings of a product; raise `ProductNotConfiguredError` when there are none."""
        if name not in self.products:
            raise ProductNotConfiguredError(product=name, known=tuple(self.products))
        return self.products[name]

    def check_names(self, *, product: str | None, channel: str | None) -> None:
        """Raise unless there is such a product, and such a channel of it, or of any where no product is named.

        Raises:
            ProductNotConfiguredError: There is no such product.
            UnknownChannelError: There is no such channel.
        """
        asked = list(self.products.values()) if product is None else [self.product(product)]
        known = tuple(dict.fromkeys(name for one in asked for name in one.channels))
        if channel is not None:
            Channels(known).stability(channel)

    def key_plan(self) -> KeyPlan:
        """Return how many keys `init` makes."""
        exceptions: dict[str, KeyCount] = {}
        for name, product in self.products.items():
            exceptions[name] = _count(product.keys)
            exceptions[roles.policy_role(name)] = _count(product.policy_keys)
        return KeyPlan(root=_count(self.root_keys), targets=_count(self.targets_keys), exceptions=exceptions)


class UnusableSettingsError(OperatorError):
    """A configuration file that is absent, no TOML, or says something unknown."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be used: {reason}.")


class ProductNotConfiguredError(InputError):
    """A product without a table in the configuration."""

    def __init__(self, *, product: str, known: tuple[str, ...]) -> None:
        self.product = product
        self.known = known
        super().__init__(
            f"The product {product!r} is not in {SETTINGS_FILE} (it has: {', '.join(known) or 'none'}); "
            "correct the name, or add it with `overhaul repository add-product`."
        )


def read_settings(path: Path) -> Settings:
    """Return the settings in the file `path`.

    Raises:
        UnusableSettingsError: They cannot be used; the sentence names the key.
    """
    try:
        settings = msgspec.toml.decode(path.read_bytes(), type=Settings)
        for product in settings.products.values():
            Channels(product.channels)
    except FileNotFoundError as error:
        reason = "it does not exist; make a repository with `overhaul init`, or name its directory with --repository"
        raise UnusableSettingsError(path=path, reason=reason) from error
    except (OSError, ValueError, RecursionError, InputError) as error:
        raise UnusableSettingsError(path=path, reason=str(error).rstrip(".")) from error
    return settings


def first_settings(*, products: dict[str, tuple[str, ...]], storage: StorageAddress, keys: str, public_url: str) -> str:
    """Return the commented text of a new configuration file."""
    tables = "\n".join(product_table(name, channels) for name, channels in products.items())
    return (
        _TEMPLATE.format(storage=_storage_lines(storage), keys=_quoted(keys), public_url=_quoted(public_url)) + tables
    )


def product_table(name: str, channels: tuple[str, ...]) -> str:
    """Return the commented text of the table of a new product."""
    listed = ", ".join(_quoted(channel) for channel in channels)
    return _PRODUCT_TEMPLATE.format(name=_quoted(name), channels=listed)


def _storage_lines(storage: StorageAddress) -> str:
    endpoint = "https://s3.example.com" if storage.endpoint is None else storage.endpoint
    region = "eu-central-1" if storage.region is None else storage.region
    return "\n".join(
        [
            f"url = {_quoted(storage.url)}",
            "# An S3-compatible service other than Amazon's.",
            f"{'# ' if storage.endpoint is None else ''}endpoint = {_quoted(endpoint)}",
            f"{'# ' if storage.region is None else ''}region = {_quoted(region)}",
            "# Speak plain http to it.",
            f"allow_http = {'true' if storage.allow_http else 'false'}",
        ]
    )


def _quoted(text: str) -> str:
    # A JSON string is a TOML basic string.
    return msgspec.json.encode(text).decode()


def _count(settings: ThresholdSettings) -> KeyCount:
    return KeyCount(keys=settings.keys, threshold=settings.threshold)


_TEMPLATE = """\
# The configuration of this Overhaul repository. Relative paths are taken from this file's directory.
# Every key is shown with its default; an unknown key is an error.

# Private keys lie here, never inside the repository. Keep those of root, targets and the products offline.
keys = {keys}

# Where devices reach the public tree.
public_url = {public_url}

# Keys that `init` makes, and how many of them must sign.
root_keys = {{ keys = 3, threshold = 2 }}
targets_keys = {{ keys = 3, threshold = 2 }}

[storage]
# A directory, or s3://bucket/prefix with credentials from the environment (AWS_ACCESS_KEY_ID and so on).
{storage}

[lifetimes]
# Days that signatures last. `overhaul repository refresh` renews those that are near their end.
root = 365
targets = 365
product = 365
policy = 90
builds = 90
snapshot = 7
timestamp = 2

[deltas]
# How many of the channel's newest older releases get a delta to a new one.
sources = 2
# How many damaged blocks of 4 KiB a device can mend in a chunk without fetching it whole; each one adds about a
# seventh to what is stored of a release. 0: none.
mended_blocks = 2

[retention]
# A channel lists so many of the newest releases of a variant and arch, and older ones that devices need; 0: all.
listed_releases = 32
# `overhaul repository prune` leaves files that nothing names alone for so long.
grace_days = 14

[server]
# The heading of the status page.
title = "Overhaul"
# Empty means SQLite in this directory's server/; postgresql://USER@HOST/NAME serves several machines.
database = ""
# Where clients reach the bucket's public/ themselves; big files are redirected there. Empty: they come from here.
redirect_to = ""
# Reports from devices whose owners allow them; so many a minute from one address, kept for so long.
reports = true
reports_per_minute = 60
reports_kept_days = 90
# The status page and /health/ready warn so long before a signature expires.
warn_before_expiry_hours = 12
# Configuration files of existing image pools, whose atomupd queries are answered too.
atomupd_pools = []
# With [asu]: how images on demand are built, and how many workers run beside the server (0: they run elsewhere).
builds = "builds.toml"
build_workers = 1

[server.operators]
# Sign in at /login and change what channels offer from the dashboard; `overhaul operator add` makes accounts.
enabled = false
idle_minutes = 30
session_hours = 12
# Changes are carried out by `overhaul operator desk`, which holds the policy key and listens on this socket.
desk = "server/desk/socket"
audit = "server/audit.jsonl"
# Start the desk beside the server instead of as a unit of its own.
run_desk = false
"""

_PRODUCT_TEMPLATE = """
[products.{name}]
# The most stable first; a release is promoted towards the first.
channels = [{channels}]
# Write a casync chunk store and index beside every release, for clients that speak casync.
castr = false
keys = {{ keys = 1, threshold = 1 }}
policy_keys = {{ keys = 1, threshold = 1 }}
"""
