"""One upgrade by an image made for this device: check, ask, wait, fetch, verify, install.

Each step can be run again: the server answers the same request with the same build, and a fetched image whose digest
is right is not fetched again.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from overhaul.dialects.asu.device.changes import Changes, changes_between
from overhaul.dialects.asu.device.facts import SystemFacts, debian_facts, openwrt_facts
from overhaul.dialects.asu.device.installing import Installer, OpenWrtInstaller, SlotInstaller
from overhaul.dialects.asu.device.seed import SeedService
from overhaul.dialects.asu.device.service import (
    Finished,
    Http,
    Newest,
    Progressing,
    Service,
    UrllibHttp,
    Wanted,
    quoted,
)
from overhaul.dialects.asu.device.settings import SysupgradeSettings
from overhaul.dialects.asu.device.today import TodayService
from overhaul.dialects.asu.device.verifying import load_public_keys, signed_digest
from overhaul.errors import NetworkError, TrustError
from overhaul.host.files import replacing
from overhaul.install.settings import load_settings
from overhaul.progress import Progress
from overhaul.release.record import ReleaseId
from overhaul.transfer.fetcher import Fetcher, OversizeError, RefusedStatusError, Request
from overhaul.transfer.fetching import fetch_file
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings

_LIMIT_BYTES = 64 * 1024 * 1024 * 1024


class TooLateError(NetworkError):
    """The build was not done in time."""

    def __init__(self, *, name: str, waited_s: float) -> None:
        self.name = name
        self.waited_s = waited_s
        super().__init__(
            f"The build {name} was not done after {waited_s:.0f} s; run the command again, it goes on by itself."
        )


class NoDigestError(TrustError):
    """A server of an era that tells no digest, over a connection that protects nothing."""

    def __init__(self, *, server: str) -> None:
        self.server = server
        super().__init__(
            f"{server} tells no digest of its images and is not reached by https, so nothing can be verified; "
            "name an https address or a key that signs them."
        )


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check found."""

    facts: SystemFacts
    newest: Newest
    changes: Changes


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """An image on this device, verified."""

    path: Path
    sha256: str
    name: str
    #: Whether a trusted key signed it for this request, or only the connection vouches for it.
    is_signed: bool


class Upgrade:
    """One device's dealings with its server."""

    def __init__(
        self,
        settings: SysupgradeSettings,
        *,
        facts: SystemFacts,
        service: Service,
        http: Http,
        installer: Installer,
        product: ReleaseId | None = None,
        fetcher: Fetcher | None = None,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self.facts = facts
        self._service = service
        self._http = http
        self._installer = installer
        self._product = product
        self._fetcher = fetcher
        self._sleep = sleep
        self._monotonic = monotonic

    def check(self, *, add: tuple[str, ...] = (), remove: tuple[str, ...] = ()) -> Checked:
        """Ask the server what there is, and what it would change."""
        facts = self.facts
        newest = self._service.newest(facts.version, facts.target, facts.revision, facts.packages)
        wanted = dict.fromkeys((*newest.packages, *add))
        newest = replace(newest, packages=tuple(name for name in wanted if name not in remove))
        return Checked(facts=facts, newest=newest, changes=changes_between(facts, newest))

    def wanted(self, checked: Checked) -> Wanted:
        """Return the request that follows from a check."""
        return Wanted(
            distribution=self.facts.distribution,
            version=checked.newest.version,
            revision=checked.newest.revision,
            target=self.facts.target,
            board=self.facts.board,
            packages=tuple(sorted(checked.newest.packages)),
            filesystem=self.facts.filesystem,
        )

    def build(self, wanted: Wanted, *, tell: Callable[[str], None]) -> Finished:
        """Ask for an image and wait until it is made.

        Raises:
            RefusedByServerError: The server will not make it.
            BuildFailedOnServerError: It could not be made.
            TooLateError: It takes too long.
        """
        began = self._monotonic()
        told = self._service.request(wanted)
        state = ""
        while isinstance(told, Progressing):
            if told.state != state:
                state = told.state
                tell(state)
            waited = self._monotonic() - began
            if waited > self._settings.wait_at_most_s:
                raise TooLateError(name=told.name, waited_s=waited)
            self._sleep(self._settings.poll_every_s)
            told = self._service.poll(told.name, wanted)
        return told

    def fetch(self, finished: Finished, wanted: Wanted) -> Fetched:
        """Fetch the image and verify it; it takes its name only when it is right.

        Raises:
            TrustError: It is not what was asked for, or not signed by a key of the settings.
        """
        settings = self._settings
        keys = load_public_keys(settings.usign_keys)
        digest = finished.sha256
        if keys:
            digest = signed_digest(finished, wanted, keys, self._http)
        elif digest is None and not settings.server.startswith("https://"):
            raise NoDigestError(server=settings.server)
        directory = Path(settings.directory)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = directory / finished.file
        url = f"{finished.directory_url}/{quoted(finished.file)}"
        if digest is None or not _holds(path, digest):
            with replacing(path, mode=0o600) as stream:
                if digest is None:
                    digest = _fetch_unsigned(self._transfer(), url, stream)
                else:
                    fetch_file(self._transfer(), url, stream, limit_bytes=_LIMIT_BYTES, sha256=digest)
        return Fetched(path=path, sha256=digest, name=finished.name, is_signed=bool(keys))

    def install(self, fetched: Fetched, *, progress: Progress) -> str:
        """Install the image; return a sentence on what comes next."""
        self._installer.test(fetched.path)
        release = None
        if self._product is not None:
            release = ReleaseId(
                product=self._product.product,
                variant=self._product.variant,
                arch=self._product.arch,
                version=self._product.version,
                build_id=fetched.sha256[:16],
            )
        said = self._installer.install(fetched.path, sha256=fetched.sha256, release=release, progress=progress)
        fetched.path.unlink(missing_ok=True)
        return said

    def _transfer(self) -> Fetcher:
        if self._fetcher is None:
            settings = self._settings
            ca_file = Path(settings.ca_file) if settings.ca_file else None
            self._fetcher = open_fetcher(FetchSettings(allow_http=settings.allow_http, ca_file=ca_file))
        return self._fetcher


def open_upgrade(settings: SysupgradeSettings) -> Upgrade:
    """Return the dealings of the device this runs on with its server."""
    ca_file = Path(settings.ca_file) if settings.ca_file else None
    http = UrllibHttp(allow_http=settings.allow_http, ca_file=ca_file)
    product = None
    installer: Installer
    if settings.device_config:
        device = load_settings(Path(settings.device_config))
        facts = debian_facts(device)
        installer = SlotInstaller(device)
        product = ReleaseId(
            product=device.product, variant=device.variant, arch=device.arch, version=facts.version, build_id="asked"
        )
    else:
        facts, installer = openwrt_facts(), OpenWrtInstaller()
    service: Service = (
        TodayService(http, settings.server)
        if settings.interface == "today"
        else SeedService(http, settings.server, distribution=facts.distribution)
    )
    return Upgrade(settings, facts=facts, service=service, http=http, installer=installer, product=product)


def _holds(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _fetch_unsigned(fetcher: Fetcher, url: str, stream: BinaryIO) -> str:
    """Write a file that only the connection vouches for to `stream`, and return its digest."""
    digest = hashlib.sha256()
    with fetcher.fetch(Request(url=url)) as response:
        if response.status != 200:
            raise RefusedStatusError(url=url, status=response.status)
        for piece in response.body:
            digest.update(piece)
            stream.write(piece)
            if stream.tell() > _LIMIT_BYTES:
                raise OversizeError(url=url, limit_bytes=_LIMIT_BYTES)
    return digest.hexdigest()
