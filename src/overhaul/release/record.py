"""The signed record of one release: what it is called and by which digests its bytes are known.

The record is a TUF target of the product's role. It names every other file of the release by path, size and
SHA-256, and each of those names its own parts (pack frames, delta segments) by digest, so one signature covers
every byte a device will ever decode.
"""

from collections.abc import Collection
from typing import Annotated

import msgspec

from overhaul.errors import TrustError
from overhaul.release.names import Name, PublicPath, Sha256, Size, Token

#: Version of the record format that this code writes.
RECORD_FORMAT = 1


class ReleaseId(msgspec.Struct, frozen=True, kw_only=True, order=False):
    """What names a release. Ordering is the business of `release.versions`."""

    product: Name
    variant: Name
    arch: Name
    version: Token
    build_id: Token

    def __str__(self) -> str:
        return f"{self.product}/{self.variant}/{self.arch} {self.version} ({self.build_id})"

    @property
    def target_path(self) -> str:
        """The TUF target path of this release's record."""
        return f"{self.product}/releases/{self.variant}/{self.arch}/{self.version}/{self.build_id}.json"


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """A published immutable file: its path below the public root, its size and its SHA-256."""

    path: PublicPath
    size: Size
    sha256: Sha256


class MendsRef(msgspec.Struct, frozen=True, kw_only=True):
    """The file that mends chunks of a pack of which a few blocks are wrong; see `content.mending`."""

    file: FileRef
    #: Bytes at the start of the file that hold the header, and their digest, as with deltas.
    header_size: Size
    header_sha256: Sha256


class PackRef(msgspec.Struct, frozen=True, kw_only=True):
    """A pack and the frame table that tells where each chunk lies in it."""

    pack: FileRef
    frames: FileRef
    #: Unset where none was made, and in records older than this.
    mends: MendsRef | msgspec.UnsetType = msgspec.UNSET

    @property
    def files(self) -> tuple[FileRef, ...]:
        """Everything that was written for the pack."""
        return (self.pack, self.frames, *(() if self.mends is msgspec.UNSET else (self.mends.file,)))


class RebuildRef(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a delta: files compressed inside the image, packed again on the device or told as they are."""

    #: Names, with fingerprints, of the recoders that a device must have proved on itself.
    recoders: tuple[str, ...]
    #: Bytes of it that are fetched to pack again, and those that are fetched instead.
    size: Size
    instead_size: Size
    #: Scratch space and, besides what every delta takes, memory that packing again needs.
    work_size: Size
    memory: Size


class DeltaRef(msgspec.Struct, frozen=True, kw_only=True):
    """A file that turns the image whose index has the digest `source_index` into this release's image."""

    source_index: Sha256
    source_version: Token
    source_build_id: Token
    file: FileRef
    #: Bytes at the start of the file that hold the header, and their digest: the header is fetched and checked
    #: alone, and it holds the digest of every segment behind it.
    header_size: Size
    header_sha256: Sha256
    #: Names of the coders a device must have to use it.
    coders: tuple[str, ...]
    #: In the order of the delta's groups.
    rebuilds: tuple[RebuildRef, ...] = ()
    #: Bytes of the image that are computed and not copied; 0 in records older than this.
    written_size: Size = 0
    #: Bytes of the frames of all chunks that the source lacks: what is fetched of packs instead; 0 in records older
    #: than this.
    chunks_size: Size = 0

    def fetched_size(self, rebuilt: Collection[int] = ()) -> int:
        """Return how many bytes of the file a device fetches that packs the `rebuilt` parts (by number) again."""
        left_out = (part.instead_size if number in rebuilt else part.size for number, part in enumerate(self.rebuilds))
        return self.file.size - sum(left_out)


class ConfigurationRef(msgspec.Struct, frozen=True, kw_only=True):
    """The file that says what the release ships below /etc; see `release.configuration`."""

    file: FileRef
    #: Bytes at the start of the file that hold the header, and their digest, as with deltas.
    header_size: Size
    header_sha256: Sha256
    #: Bytes of the header's MessagePack.
    decoded_size: Size


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes of a release's image."""

    size: Size
    #: `ext4`, `erofs`, `squashfs` or `raw`; tells people and the delta maker what it is.
    filesystem: str
    #: The casync index (`.caibx`): ordered (chunk id, size); the truth about the image's bytes.
    index: FileRef
    #: Together these hold every chunk of the index; those made for this release come first.
    packs: tuple[PackRef, ...]
    #: How many packs were made for this release: none when earlier releases had every chunk.
    own_packs: Size = 1
    deltas: tuple[DeltaRef, ...] = ()

    @property
    def own_pack_bytes(self) -> int:
        """Bytes of the packs that hold what no earlier release had."""
        return sum(ref.pack.size for ref in self.packs[: self.own_packs])


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One build of an OS, published once."""

    format: int
    id: ReleaseId
    #: Seconds since 1970 UTC at which it was published; up to the last that a calendar date can be written for.
    published_at: Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799)]
    image: ImageRecord
    #: Devices below it must stop here before they go on.
    checkpoint: bool = False
    notes: str = ""
    #: Unset where nothing is known of the image's files, and in records older than this.
    configuration: ConfigurationRef | msgspec.UnsetType = msgspec.UNSET


def encode_release(release: Release) -> bytes:
    """Return the canonical JSON bytes of a record: one release always gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(release, order="sorted"), indent=1) + b"\n"


def decode_release(data: bytes) -> Release:
    """Return the record held in `data`.

    Raises:
        TrustError: The bytes are not a record this version understands.
    """
    try:
        release = msgspec.json.decode(data, type=Release)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise TrustError(f"The release record cannot be read ({error}); publish the release again.") from error
    if release.format != RECORD_FORMAT:
        raise TrustError(
            f"The release record has format {release.format}, but {RECORD_FORMAT} is the newest known here; "
            "update Overhaul first."
        )
    return release
