"""One run of the client: find out what is next, and install it.

    settings, manifest -> addresses -> answer -> the candidates left for this device -> print it, or install the first

Only the first candidate is ever installed: it is the next checkpoint, or the image the server wants this device on.
What the candidates behind it need is decided by the server when the device asks again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import TypeVar

from overhaul.dialects.atomupd.candidates import Candidate, UnreadableUpdateError, Update, UpdatePath, decode_update
from overhaul.dialects.atomupd.device.asking import Wish, addresses, ask
from overhaul.dialects.atomupd.device.choosing import bundle_of, next_candidates, refuse_other, way_of
from overhaul.dialects.atomupd.device.facts import told_facts
from overhaul.dialects.atomupd.device.installing import Bundle, InstallationFailedError, Installer
from overhaul.dialects.atomupd.device.progress import Tell
from overhaul.dialects.atomupd.device.runtime import RuntimeFiles, answer_text
from overhaul.dialects.atomupd.device.settings import ClientSettings, Era
from overhaul.dialects.atomupd.manifest import Image, UnusableManifestError, image_of_os_release, parse_manifest
from overhaul.dialects.atomupd.versions import parse_build_id
from overhaul.errors import BusyError, InputError, OverhaulError
from overhaul.transfer.wire import check_address

_OS_RELEASE = (Path("/etc/os-release"), Path("/usr/lib/os-release"))

_Parsed = TypeVar("_Parsed")


class Outcome(Enum):
    """How a run ended."""

    UP_TO_DATE = auto()
    TOLD = auto()
    UPDATED = auto()


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the command line asks for."""

    query_only: bool = False
    estimate_sizes: bool = False
    update_file: Path | None = None
    update_url: str = ""
    chunks_store_url: str = ""
    #: A normalised build id, or empty for whatever is next.
    update_version: str = ""
    wish: Wish = field(default_factory=Wish)
    manifest_file: Path | None = None
    from_os_release: bool = False


@dataclass(frozen=True, kw_only=True)
class Client:
    """What a run stands on."""

    settings: ClientSettings
    files: RuntimeFiles
    #: Opened on use, since a query installs nothing; takes the address of a chunk store that is not beside the bundle.
    open_installer: Callable[[str | None], Installer]
    #: Fills in sizes the server does not know.
    estimate: Callable[[Update], Update]
    #: Takes lines for standard output.
    tell: Tell


class UnreadableFileError(InputError):
    """A file named by the caller or the configuration cannot be read."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be used: {reason}.")


def run(client: Client, order: Order) -> Outcome:
    """Carry out `order`.

    Raises:
        OverhaulError: It could not be done; the device still starts what it started before.
    """
    if order.update_url:
        _install(client, Bundle(url=order.update_url, store_url=order.chunks_store_url or None))
        return Outcome.UPDATED
    settings = client.settings
    running = None if order.update_file is not None and settings.era is Era.EARLY else read_running(settings, order)
    update = _answer(client, order, running)
    candidates = _left(client, order, update, running)
    if order.update_version:
        refuse_other(candidates, wanted=order.update_version)
    if not candidates:
        client.files.forget_answer()
        return Outcome.UP_TO_DATE
    update = _with_candidates(update, candidates)
    if settings.era is Era.NEWEST or order.query_only:
        if order.estimate_sizes:
            update = client.estimate(update)
        if order.query_only and settings.era is Era.NEWEST:
            client.tell(answer_text(update))
            return Outcome.TOLD
    if settings.era is Era.EARLY and order.update_file is None:
        client.files.store_answer(update)
    if order.query_only:
        return Outcome.TOLD
    _install(client, bundle_of(candidates[0], images_url=settings.images_url))
    return Outcome.UPDATED


def read_running(settings: ClientSettings, order: Order) -> Image:
    """Return the image that runs here, of its manifest or of os-release.

    Raises:
        UnreadableFileError: There is no manifest, or it cannot be used.
    """
    if order.from_os_release:
        path = next((path for path in _OS_RELEASE if path.exists()), _OS_RELEASE[0])
        return _parsed(path, lambda data: image_of_os_release(data.decode(), branches=settings.era is Era.NEWEST))
    path = order.manifest_file or settings.manifest
    return _parsed(path, lambda data: _parse_manifest(data, settings))


def read_update(path: Path) -> Update:
    """Return the update that a file of `--update-file` holds; an empty file is an error."""

    def parse(data: bytes) -> Update:
        if not data.strip():
            raise UnreadableUpdateError("it is empty")
        return decode_update(data)

    return _parsed(path, parse)


def _answer(client: Client, order: Order, running: Image | None) -> Update:
    if order.update_file is not None:
        return read_update(order.update_file)
    if running is None:
        raise AssertionError("without an update file the running image is known")
    facts = told_facts(client.settings)
    return ask(client.settings, addresses(client.settings, running, order.wish, facts))


def _left(client: Client, order: Order, update: Update, running: Image | None) -> tuple[Candidate, ...]:
    path = way_of(update)
    if path is None:
        return ()
    # What a person handed in was chosen already.
    asks_stable = client.settings.era is Era.EARLY and order.update_file is None
    return next_candidates(path, running=running, want_unstable=client.settings.want_unstable if asks_stable else None)


def _with_candidates(update: Update, candidates: tuple[Candidate, ...]) -> Update:
    def cut(path: UpdatePath | None) -> UpdatePath | None:
        if path is None or path is not way_of(update):
            return path
        return UpdatePath(
            release=path.release, candidates=candidates, replacement_eol_variant=path.replacement_eol_variant
        )

    return Update(minor=cut(update.minor), major=cut(update.major))


def _install(client: Client, bundle: Bundle) -> None:
    for url in (bundle.url, bundle.store_url or ""):
        if "://" in url:
            check_address(url, allow_http=client.settings.allow_http)
    client.files.make()
    try:
        client.open_installer(bundle.store_url).install(bundle, tell=client.tell)
    except BusyError:
        # Nothing was tried.
        raise
    except OverhaulError as error:
        client.files.note_failure(error.reason if isinstance(error, InstallationFailedError) else str(error))
        raise


def _parse_manifest(data: bytes, settings: ClientSettings) -> Image:
    if settings.era is Era.NEWEST or b'"branch"' in data or b'"default_update_branch"' in data:
        return parse_manifest(data)[0]
    return parse_manifest(data, branches=False)[0]


def _parsed(path: Path, parse: Callable[[bytes], _Parsed]) -> _Parsed:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise UnreadableFileError(path=path, reason=error.strerror or str(error)) from error
    except UnicodeError as error:
        raise UnreadableFileError(path=path, reason="it is no text") from error
    except (UnusableManifestError, UnreadableUpdateError) as error:
        raise UnreadableFileError(path=path, reason=error.reason) from error


def normalised_build_id(text: str) -> str:
    """Return a build id as the server writes it."""
    return str(parse_build_id(text))
