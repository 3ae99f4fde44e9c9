"""What a builder may be told besides the tree: one record, the same for every way to start it."""

from dataclasses import dataclass

from overhaul.dialects.swupd.eras import DEFAULT_FORMAT, Era
from overhaul.dialects.swupd.packing import Compression
from overhaul.dialects.swupd.paths import DEBUG_DIRECTORIES
from overhaul.dialects.swupd.signing import Signer


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How versions are built."""

    format: int = DEFAULT_FORMAT
    #: None publishes without signatures, which clients accept only when they are told to.
    signer: Signer | None = None
    #: Packs and manifest deltas are made from so many versions before.
    packs_from: int = 4
    zero_packs: bool = True
    compression: Compression = "smallest"
    #: Effort for full files and for packs, as levels of xz: 6 takes three to four times as
    #: long as these; it makes full files 3.4 % smaller and packs 8.4 %.
    fullfile_level: int = 3
    pack_level: int = 2
    #: Only clients that were built so put extended attributes into hashes; they all must agree.
    xattrs: bool = False
    stateless: bool = False
    #: Whether files below `debug_directories` are published.
    debug: bool = True
    debug_directories: tuple[bytes, ...] = DEBUG_DIRECTORIES
    ghosts: bool = True
    #: Mark renames in manifests, as the old server could; only clients before 3.16 look at that.
    renames: bool = False
    #: Files that no delta is made from or for, because finding one takes many times their size in memory.
    delta_max_bytes: int = 64 << 20
    #: Put in what clients need to know themselves (version, format, bundles, addresses) where the tree lacks it.
    complete: bool = True
    #: What `complete` writes for clients.
    content_url: str = ""
    version_url: str = ""
    workers: int = 2

    @property
    def era(self) -> Era:
        """The rules of the format."""
        return Era(self.format)
