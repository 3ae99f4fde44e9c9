"""What `device.toml` says about neighbours: by default nothing is given and nobody is asked."""

from typing import Annotated

import msgspec

from overhaul.release.names import Text
from overhaul.transfer.nearness import split_address

_Positive = Annotated[int, msgspec.Meta(gt=0, le=(1 << 53) - 1)]


class ShareSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sharing with devices of the same network."""

    #: `ADDRESS:PORT` to give on, a private or link-local address or 0.0.0.0 or [::]; empty: nothing is given.
    listen: Text = ""
    max_bytes_per_s: _Positive = 1_000_000
    max_bytes_per_day: _Positive = 4_000_000_000
    #: `ADDRESS:PORT` of neighbours to ask.
    neighbours: tuple[Text, ...] = ()
    #: Chunks are taken from neighbours where that saves a byte from the repository for at most so many of theirs.
    max_bytes_per_saved_byte: _Positive = 8
    #: Whether neighbours are found, and this one is announced, by multicast DNS.
    discover: bool = False

    @property
    def asks(self) -> bool:
        """Whether anybody is asked."""
        return bool(self.neighbours) or self.discover


def listening_address(share: ShareSettings) -> tuple[str, int] | None:
    """Return where to give, or None when nothing is given.

    Raises:
        ValueError: It is no address, or one that strangers reach.
    """
    if not share.listen:
        return None
    host, _separator, port = share.listen.rpartition(":")
    if everywhere(host.removeprefix("[").removesuffix("]")) and port.isascii() and port.isdecimal():
        return host.removeprefix("[").removesuffix("]"), int(port)
    address = split_address(share.listen)
    if address is None:
        raise ValueError(f"share.listen {share.listen!r} is no ADDRESS:PORT of a private or link-local network")
    return address


def everywhere(host: str) -> bool:
    """Tell whether an address stands for all of this machine's."""
    return host in {"0.0.0.0", "::"}  # noqa: S104 - who may ask is checked for each connection


def check_sharing(share: ShareSettings, *, accepts_builds: bool) -> None:
    """Raise ValueError with the reason when `share` cannot be used."""
    listening_address(share)
    if share.listen and accepts_builds:
        raise ValueError(
            "share.listen cannot be used with repository.accept_builds: an image that was built for this device "
            "alone is nobody else's"
        )
    for text in share.neighbours:
        if split_address(text) is None:
            raise ValueError(f"the neighbour {text!r} is no ADDRESS:PORT of a private or link-local network")
