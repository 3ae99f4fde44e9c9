"""Which neighbours are asked: those that the configuration names, then those that announce themselves."""

from collections.abc import Sequence
from contextlib import suppress

from overhaul.content.neighbours import Neighbour
from overhaul.errors import DeviceError
from overhaul.install.sharing import ShareSettings
from overhaul.transfer.nearness import split_address
from overhaul.transfer.neighbour import HttpNeighbour


def find(share: ShareSettings) -> Sequence[Neighbour]:
    """Return the neighbours to ask; finding none is no failure, whatever the reason."""
    addresses = dict.fromkeys(address for text in share.neighbours if (address := split_address(text)) is not None)
    if share.discover:
        from overhaul.agent.sharing.discovery import find_neighbours

        # An update must not fail because nobody can be found.
        with suppress(DeviceError):
            addresses.update(dict.fromkeys(find_neighbours()))
    own = _listening(share)
    return [HttpNeighbour(host, port) for host, port in addresses if (host, port) != own]


def _listening(share: ShareSettings) -> tuple[str, int] | None:
    return split_address(share.listen) if share.listen else None
