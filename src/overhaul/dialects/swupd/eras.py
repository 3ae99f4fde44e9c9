"""What a format number means: which rules of the published tree hold for it.

A format is a promise between builder and client, and a client follows only its own. Between format 4 and today the
grammar only grew; format 3 (the first, used by Ostro) differs in what is hashed and how deltas are called.
"""

from dataclasses import dataclass

from overhaul.errors import InputError

#: The layout that every client since 2016 reads.
DEFAULT_FORMAT = 4
OLDEST_FORMAT = 3
#: A client reads the number into a C int.
NEWEST_FORMAT = (1 << 31) - 1
#: So are versions.
NEWEST_VERSION = (1 << 31) - 1

#: What format 25 may state at most, because its clients hold it in 32 bits.
_CONTENT_SIZE_CAP_OF_25 = 1_999_999_999


class UnknownFormatError(InputError):
    """A format number that no client has."""

    def __init__(self, *, number: int) -> None:
        self.number = number
        super().__init__(f"Format {number} is not known; name one from {OLDEST_FORMAT} to {NEWEST_FORMAT}.")


@dataclass(frozen=True)
class Era:
    """The rules of one format."""

    number: int

    def __post_init__(self) -> None:
        if not OLDEST_FORMAT <= self.number <= NEWEST_FORMAT:
            raise UnknownFormatError(number=self.number)

    @property
    def hashes_directory_paths(self) -> bool:
        """Whether a directory's hash covers its path instead of one word."""
        return self.number < 4

    @property
    def names_both_hashes(self) -> bool:
        """Whether the name of a delta holds the hash of the old file, too."""
        return self.number >= 4

    @property
    def has_ghosts(self) -> bool:
        """Whether clients know ghosted files; before, they leave deleted boot files alone by their path."""
        return self.number >= 4

    @property
    def has_minversion(self) -> bool:
        """Whether the MoM states the version before which everything was made again."""
        return self.number >= 26

    @property
    def has_experimental(self) -> bool:
        """Whether a bundle may be marked as an experiment."""
        return self.number > 26

    @property
    def has_also_add(self) -> bool:
        """Whether a bundle may suggest others."""
        return self.number >= 29

    def content_size(self, size: int) -> int:
        """Return the size in bytes as a manifest of this format may state it."""
        return min(size, _CONTENT_SIZE_CAP_OF_25) if self.number == 25 else size
