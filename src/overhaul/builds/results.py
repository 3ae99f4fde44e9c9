"""What a build ends with: a result that names every file it made, or a failure that says why.

Both are plain records that a queue stores as JSON and that protocols turn into their own words.
"""

from enum import StrEnum

import msgspec

from overhaul.errors import OperatorError


class Phase(StrEnum):
    """Where a build is; clients know exactly these words."""

    INIT = "init"
    CONTAINER_SETUP = "container_setup"
    VALIDATE_REVISION = "validate_revision"
    VALIDATE_MANIFEST = "validate_manifest"
    BUILDING_IMAGE = "building_image"
    SIGNING_IMAGES = "signing_images"
    DONE = "done"
    FAILED = "failed"


class ArtefactFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a result, below the directory of its artefact."""

    name: str
    size_bytes: int
    sha256: str


class BuiltImage(msgspec.Struct, frozen=True, kw_only=True):
    """One of the files that a device can be given."""

    name: str
    #: `sysupgrade`, `factory`, `combined`, `combined-efi`, `sdcard`, `rootfs`, ...
    type: str
    filesystem: str
    #: Digest of the file as it is stored, and as it left the builder; they differ when a signature was appended.
    sha256: str
    sha256_unsigned: str


class PublishedRelease(msgspec.Struct, frozen=True, kw_only=True):
    """The release of our own repository that an image became."""

    product: str
    variant: str
    arch: str
    version: str
    build_id: str
    channel: str


class BuildResult(msgspec.Struct, frozen=True, kw_only=True):
    """A build that ended well."""

    #: Name of its directory in the artefact store.
    artefact: str
    files: tuple[ArtefactFile, ...]
    images: tuple[BuiltImage, ...]
    #: Package -> version, of everything in the image.
    manifest: dict[str, str]
    #: SHA-256 of the manifest exactly as the builder printed it.
    manifest_sha256: str
    #: SHA-256 of what the builder was made of: an ImageBuilder's archive, or the list of Debian archives.
    builder_digest: str
    #: The builder's own description of the image: the top of `profiles.json` and the profile's part of it.
    document: dict[str, object]
    #: The command that made the image, and the list of packages in it.
    command: tuple[str, ...]
    command_packages: tuple[str, ...]
    stdout: str
    stderr: str
    build_seconds: float
    #: Seconds since 1970 UTC.
    built_at: float
    release: PublishedRelease | None = None


class FailureKind(StrEnum):
    """Why a build ended without an image; protocols answer by it, never by the text."""

    WRONG_REVISION = "wrong_revision"
    IMPOSSIBLE_PACKAGES = "impossible_packages"
    PACKAGE_VERSION = "package_version"
    TOO_BIG = "too_big"
    BUILD_FAILED = "build_failed"
    NO_DOCUMENT = "no_document"
    UNKNOWN_PROFILE = "unknown_profile"
    SETUP_FAILED = "setup_failed"
    BUILDER_MISSING = "builder_missing"
    SIGNATURE_REFUSED = "signature_refused"
    TIMED_OUT = "timed_out"
    LIMIT = "limit"
    WORKER_LOST = "worker_lost"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class BuildFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A build that ended without an image."""

    kind: FailureKind
    #: One line for people, without a prefix.
    detail: str
    #: Packages that do not exist, and packages that exclude one another.
    missing: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    stdout: str = ""
    stderr: str = ""
    command: tuple[str, ...] = ()


class BuildFailedError(OperatorError):
    """Raised by a builder to end its build with `failure`."""

    def __init__(self, failure: BuildFailure) -> None:
        self.failure = failure
        super().__init__(f"The build ended without an image: {failure.detail}.")
