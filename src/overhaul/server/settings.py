"""What the server must be told. Plain values only, so that worker processes can be handed a copy."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from overhaul.dialects.asu.settings import AsuSettings
from overhaul.dialects.atomupd.settings import AtomupdSettings
from overhaul.publishing.settings import SETTINGS_FILE, OidcSettings, Settings, UnusableSettingsError, read_settings
from overhaul.repository.opening import StorageAddress
from overhaul.server.database.engine import sqlite_url

#: Where the embedded database lies in a repository's directory; never below `public/`.
DATABASE_FILE = Path("server/overhaul.sqlite3")


@dataclass(frozen=True, kw_only=True)
class AtomupdProduct:
    """A product whose devices may ask by atomupd queries."""

    name: str
    settings: AtomupdSettings
    #: The most stable first.
    channels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ImagesOnDemand:
    """What builds images for the clients of attended sysupgrade."""

    asu: AsuSettings
    #: Relative paths of key files begin here.
    base: Path
    #: The file that says how images are built.
    builds: Path
    #: How many workers run beside the server.
    workers: int


@dataclass(frozen=True, kw_only=True)
class OidcAccess:
    """The identity provider that vouches for operators."""

    issuer: str
    client_id: str
    #: None for a public client.
    client_secret_file: Path | None
    redirect_url: str
    name_claim: str
    scope: str
    label: str
    ca_file: str
    allow_http: bool

    def read_secret(self) -> str | None:
        """Return the client's secret; None for a public client."""
        if self.client_secret_file is None:
            return None
        try:
            return self.client_secret_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = f"the client secret cannot be read ({error})"
            raise UnusableSettingsError(path=self.client_secret_file, reason=reason) from error


@dataclass(frozen=True, kw_only=True)
class OperatorAccess:
    """How operators sign in and where their changes are carried out."""

    idle_s: int
    longest_s: int
    #: The socket of the desk.
    desk: Path
    audit: Path
    #: The channels of every product, the most stable first: where a release can be promoted to.
    channels: dict[str, tuple[str, ...]]
    #: What commands shown to people name with `--repository`.
    directory: Path
    run_desk: bool
    oidc: OidcAccess | None


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How one server serves one repository."""

    #: Where the repository's objects live.
    storage: StorageAddress
    #: `sqlite:///file` or `postgresql://user@host/name`.
    database_url: str
    #: What people call this repository; the heading of the status page.
    title: str = "Overhaul"
    #: Where clients reach the bucket's `public/` themselves; big files are redirected there.
    redirect_to: str | None = None
    #: How often a storage that is not local is asked whether the pointer changed.
    ask_storage_every_s: float = 5.0
    #: Whether device reports are taken.
    reports: bool = True
    #: Reports one address may send in a minute; a fleet behind one address needs more.
    reports_per_minute: int = 60
    reports_kept_days: int = 90
    reports_kept_at_most: int = 1_000_000
    #: Readiness and the status page warn when devices would refuse the repository within this time.
    warn_before_expiry_s: int = 12 * 3600
    #: Products whose atomupd queries are answered out of the signed policies.
    atomupd_products: tuple[AtomupdProduct, ...] = ()
    #: Configuration files of image pools whose atomupd queries are answered.
    atomupd_pools: tuple[Path, ...] = ()
    images_on_demand: ImagesOnDemand | None = None
    #: None when nobody signs in.
    operators: OperatorAccess | None = None

    @classmethod
    def of_repository(cls, directory: Path) -> "ServerSettings":
        """Return what the `overhaul.toml` in `directory` says.

        Raises:
            UnusableSettingsError: There is none, or it cannot be used.
        """
        settings = read_settings(directory / SETTINGS_FILE)
        table = settings.server
        url = settings.storage.url
        return cls(
            storage=msgspec.structs.replace(
                settings.storage, url=url if "://" in url else str((directory / url).absolute())
            ),
            database_url=table.database or sqlite_url(directory / DATABASE_FILE),
            title=table.title,
            redirect_to=table.redirect_to or None,
            reports=table.reports,
            reports_per_minute=table.reports_per_minute,
            reports_kept_days=table.reports_kept_days,
            warn_before_expiry_s=round(table.warn_before_expiry_hours * 3600),
            atomupd_products=tuple(
                AtomupdProduct(name=name, settings=product.atomupd, channels=product.channels)
                for name, product in settings.products.items()
                if product.atomupd is not None
            ),
            atomupd_pools=tuple((directory / pool).absolute() for pool in table.atomupd_pools),
            images_on_demand=_images_on_demand(settings, directory.absolute()),
            operators=operator_access(settings, directory.absolute()) if table.operators.enabled else None,
        )


def operator_access(settings: Settings, directory: Path) -> OperatorAccess:
    """Return how operators of the repository in `directory` sign in, whether or not that is switched on."""
    table = settings.server.operators
    return OperatorAccess(
        idle_s=table.idle_minutes * 60,
        longest_s=table.session_hours * 3600,
        desk=directory / table.desk,
        audit=directory / table.audit,
        channels={name: product.channels for name, product in settings.products.items()},
        directory=directory,
        run_desk=table.run_desk,
        oidc=None if table.oidc is None else _oidc(table.oidc, directory),
    )


def _oidc(table: OidcSettings, directory: Path) -> OidcAccess:
    return OidcAccess(
        issuer=table.issuer,
        client_id=table.client_id,
        client_secret_file=directory / table.client_secret_file if table.client_secret_file else None,
        redirect_url=table.redirect_url,
        name_claim=table.name_claim,
        scope=table.scope,
        label=table.label,
        ca_file=str(directory / table.ca_file) if table.ca_file else "",
        allow_http=table.allow_http,
    )


def _images_on_demand(settings: Settings, directory: Path) -> ImagesOnDemand | None:
    asu = settings.asu
    if asu is None or not asu.enabled:
        return None
    if asu.distributions:
        asu = msgspec.structs.replace(asu, distributions=str(directory / asu.distributions))
    return ImagesOnDemand(
        asu=asu,
        base=directory,
        builds=directory / settings.server.builds,
        workers=settings.server.build_workers,
    )
