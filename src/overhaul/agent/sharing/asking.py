"""Which neighbours are asked: those that the configuration names, then those that announce themselves."""

from collections.abc import Sequence, Set
from contextlib import suppress

from overhaul.content.neighbours import Neighbour
from overhaul.errors import DeviceError
from overhaul.install.sharing import ShareSettings, everywhere, listening_address
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
    own = _own(share)
    return [HttpNeighbour(host, port) for host, port in addresses if (host.partition("%")[0], port) not in own]


def _own(share: ShareSettings) -> Set[tuple[str, int]]:
    """Return where this device gives by itself."""
    listening = listening_address(share)
    if listening is None:
        return set()
    host, port = listening
    if not everywhere(host):
        return {(host.partition("%")[0], port)}
    from overhaul.agent.sharing.discovery import own_addresses

    with suppress(DeviceError):
        return {(address, port) for address in own_addresses()}
    return set()
