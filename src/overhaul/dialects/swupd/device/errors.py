"""What can go wrong on a device that speaks swupd: each error knows the exit code that `swupd` documents for it."""

from pathlib import Path
from typing import ClassVar

from overhaul.dialects.swupd.device.exits import Exit
from overhaul.errors import (
    BusyError,
    DeviceError,
    InputError,
    NetworkError,
    OperatorError,
    OverhaulError,
    TrustError,
)


class ClientError(OverhaulError):
    """An error of the client; it is always a member of one family, too."""

    status: ClassVar[Exit] = Exit.UNEXPECTED


class WrongUsageError(ClientError, InputError):
    """The command line or a configuration file asks for what cannot be."""

    status = Exit.BAD_OPTION

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}; see `swupd --help`.")


class NotRootError(ClientError, DeviceError):
    """A command that changes or reads the system, called by an ordinary user."""

    status = Exit.NO

    def __init__(self, *, command: str) -> None:
        self.command = command
        super().__init__(f"`swupd {command}` must be run as root.")


class StateLockedError(ClientError, BusyError):
    """Another swupd works on the same data."""

    status = Exit.LOCKED

    def __init__(self, *, path: Path, holder: str) -> None:
        self.path = path
        self.holder = holder
        by = f" (process {holder})" if holder else ""
        super().__init__(f"Another swupd{by} holds {path}; wait until it has ended, then try again.")


class RefusedDirectoryError(ClientError, InputError):
    """A state directory that would put the system itself at risk."""

    status = Exit.BAD_OPTION

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} cannot be a state directory; name one that holds nothing else.")


class UnknownVersionError(ClientError, DeviceError):
    """The installed version cannot be told."""

    status = Exit.VERSION_UNKNOWN

    def __init__(self, *, root: Path, reason: str) -> None:
        self.root = root
        self.reason = reason
        super().__init__(
            f"The version of the system in {root} is unknown ({reason}); restore VERSION_ID in its os-release file."
        )


class NoAddressError(ClientError, DeviceError):
    """No content or version URL is configured."""

    status = Exit.UNEXPECTED

    def __init__(self, *, which: str) -> None:
        self.which = which
        super().__init__(f"No {which} URL is configured; set one with `swupd mirror --set URL` or --{which}url.")


class InsecureRepositoryError(ClientError, InputError):
    """An address of a kind that is not allowed."""

    status = Exit.BAD_OPTION

    def __init__(self, *, url: str) -> None:
        self.url = url
        super().__init__(f"{url} is neither https nor file; use one of them, or allow it with --allow-insecure-http.")


class NoAnswerError(ClientError, NetworkError):
    """The repository cannot be reached."""

    status = Exit.NO_CONNECTION

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"{url} cannot be had ({reason}); check the network and the address, then try again.")


class SignatureError(ClientError, TrustError):
    """A signature or certificate did not verify."""

    status = Exit.SIGNATURE

    def __init__(self, *, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what} cannot be trusted ({reason}); nothing of it was used.")


class MomError(ClientError, TrustError):
    """The list of a version's bundles cannot be loaded or trusted."""

    status = Exit.MOM

    def __init__(self, *, version: int, reason: str) -> None:
        self.version = version
        self.reason = reason
        super().__init__(f"The manifest of version {version} cannot be used: {reason}. Nothing was changed.")


class BundleManifestError(ClientError, TrustError):
    """A bundle's manifest cannot be loaded or is not the signed one."""

    status = Exit.MANIFEST

    def __init__(self, *, bundle: str, version: int, reason: str) -> None:
        self.bundle = bundle
        self.version = version
        self.reason = reason
        super().__init__(f"The manifest of bundle {bundle} in version {version} cannot be used: {reason}.")


class RecursingBundlesError(ClientError, TrustError):
    """Bundles that include more bundles than any release has."""

    status = Exit.RECURSING_MANIFESTS

    def __init__(self, *, bundle: str) -> None:
        self.bundle = bundle
        super().__init__(f"Bundle {bundle} includes itself in a way that does not end; its publisher must mend it.")


class ClockError(ClientError, DeviceError):
    """The time cannot be checked against the build of the system."""

    status = Exit.BAD_TIME

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The clock cannot be checked ({reason}); set it, or pass --ignore-time.")


class UnknownBundleError(ClientError, InputError):
    """A name that is no bundle of this version."""

    status = Exit.INVALID_BUNDLE

    def __init__(self, *, bundle: str, version: int) -> None:
        self.bundle = bundle
        self.version = version
        super().__init__(f"Bundle {bundle!r} does not exist in version {version}; see `swupd bundle-list --all`.")


class NotInstalledError(ClientError, InputError):
    """A bundle that is not there."""

    status = Exit.NOT_INSTALLED

    def __init__(self, *, bundle: str) -> None:
        self.bundle = bundle
        super().__init__(f"Bundle {bundle!r} is not installed; see `swupd bundle-list`.")


class RequiredBundleError(ClientError, InputError):
    """A bundle that others, or the system, cannot be without."""

    status = Exit.REQUIRED_BUNDLE

    def __init__(self, *, bundle: str, needed_by: tuple[str, ...]) -> None:
        self.bundle = bundle
        self.needed_by = needed_by
        by = ", ".join(needed_by) if needed_by else "the system itself"
        super().__init__(f"Bundle {bundle!r} is required by {by}; remove these first, or all with --force.")


class DownloadError(ClientError, NetworkError):
    """Content of the repository cannot be had."""

    status = Exit.DOWNLOAD

    def __init__(self, *, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what} cannot be had: {reason}. Nothing was changed; run the command again to go on.")


class BadContentError(ClientError, TrustError):
    """Content that is not what the signed manifests name."""

    status = Exit.NO

    def __init__(self, *, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what} is bad server data: {reason}. Nothing of it was used.")


class BadArchiveError(ClientError, TrustError):
    """A tar that cannot be read, or that holds what it must not."""

    status = Exit.UNTAR

    def __init__(self, *, archive: str, reason: str) -> None:
        self.archive = archive
        self.reason = reason
        super().__init__(f"{archive} cannot be unpacked: {reason}. Nothing of it was used.")


class NoSpaceError(ClientError, DeviceError):
    """A file system is too full for what is asked."""

    status = Exit.DISK_SPACE

    def __init__(self, *, place: Path, needed_bytes: int, free_bytes: int) -> None:
        self.place = place
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(
            f"{place} has {free_bytes} bytes free, and {needed_bytes} are needed; nothing was changed. "
            "Free some space (`swupd clean` may help), then run the command again."
        )


class UnsafePathError(ClientError, DeviceError):
    """A place in the system where nothing may be written, such as one behind a link."""

    status = Exit.UNEXPECTED

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be written safely: {reason}. Nothing was changed; run `swupd repair`.")


class StagingError(ClientError, DeviceError):
    """A file that the system did not take."""

    def __init__(self, *, path: str, status: Exit, reason: str) -> None:
        self.path = path
        self.reason = reason
        self.kind = status
        super().__init__(f"{path} cannot be written: {reason}. Run the command again when that is mended.")


class VersionMismatchError(ClientError, InputError):
    """A version that the command cannot go to."""

    status = Exit.BAD_OPTION

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}.")


class FormatMismatchError(ClientError, InputError):
    """A repair across formats."""

    status = Exit.MANIFEST

    def __init__(self, *, ours: str, theirs: int) -> None:
        self.ours = ours
        self.theirs = theirs
        super().__init__(f"The version has format {theirs} and this system {ours}; pass --force to go on all the same.")


class PathNotInManifestError(ClientError, InputError):
    """A path that no installed bundle has."""

    status = Exit.NOT_IN_MANIFEST

    def __init__(self, *, path: str) -> None:
        self.path = path
        super().__init__(f"{path} is in no manifest of an installed bundle.")


class BrokenJournalError(ClientError, DeviceError):
    """The record of an interrupted run is damaged."""

    status = Exit.INVALID_FILE

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(
            f"{path}, the record of an interrupted run, is damaged; remove it and run `swupd repair` to set the "
            "system right."
        )


class RepositoryNameError(ClientError, InputError):
    """A 3rd-party repository that does not exist, or already does, or cannot be."""

    status = Exit.INVALID_REPOSITORY

    def __init__(self, *, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"3rd-party repository {name!r}: {reason}.")


class SubprocessError(ClientError, OperatorError):
    """A program of the system did not do its part."""

    status = Exit.SUBPROCESS

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}.")


class NothingToRollBackError(ClientError, DeviceError):
    """No earlier root is kept."""

    status = Exit.NO

    def __init__(self, *, place: Path) -> None:
        self.place = place
        super().__init__(f"{place} keeps no earlier root; only staged updates (`swupd update --staged`) leave one.")
