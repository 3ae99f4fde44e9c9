"""`overhaul device share`: the server with everything it stands on, until it is told to end."""

import asyncio
import datetime
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from overhaul.agent.sharing.allowance import Allowance
from overhaul.agent.sharing.discovery import announced, own_addresses
from overhaul.agent.sharing.serving import ShareServer
from overhaul.agent.sharing.shelf import Shelf
from overhaul.content.cache import ContentCache
from overhaul.errors import DeviceError
from overhaul.host.listening import listen
from overhaul.host.metered import MeteredLink
from overhaul.install.settings import DeviceSettings
from overhaul.install.sharing import everywhere, listening_address
from overhaul.install.slots import Slot
from overhaul.install.state import DeviceState, StateFile, fresh_state


class SharingOffError(DeviceError):
    """Nobody asked for anything to be given."""

    def __init__(self) -> None:
        super().__init__(
            "Nothing is shared with neighbours: `listen` in [share] of the configuration is empty; name the address "
            "to give on there, such as 192.168.1.5:7373."
        )


def share_server(settings: DeviceSettings, *, is_metered: Callable[[], bool]) -> ShareServer:
    """Return the server of the device that `settings` describe."""
    state_directory = Path(settings.state_directory)
    share = settings.share
    return ShareServer(
        shelf=Shelf(
            slots={name: Slot(name=name, path=path) for name, path in settings.slot_paths.items()},
            state=lambda: _known_state(StateFile(state_directory)),
            cache=ContentCache(state_directory / "content"),
        ),
        allowance=Allowance(
            max_bytes_per_s=share.max_bytes_per_s,
            max_bytes_per_day=share.max_bytes_per_day,
            file=state_directory / "shared.json",
            monotonic=time.monotonic,
            now=lambda: datetime.datetime.now(datetime.UTC),
        ),
        is_metered=is_metered,
    )


def run_share(settings: DeviceSettings, *, started: Callable[[str, int], None]) -> int:
    """Give to neighbours until SIGTERM or SIGINT; return how many bytes went out.

    Raises:
        SharingOffError: The configuration does not say so.
        AddressUnavailableError: The address cannot be listened on.
        DiscoveryMissingError: It is to be announced, and the library is not there.
    """
    address = listening_address(settings.share)
    if address is None:
        raise SharingOffError
    server = share_server(settings, is_metered=MeteredLink(monotonic=time.monotonic).is_metered)
    with listen(*address) as listening:
        host, port = listening.getsockname()[:2]
        announcement: AbstractContextManager[None] = nullcontext()
        if settings.share.discover:
            # Who listens on 0.0.0.0 does not answer on IPv6.
            addresses = own_addresses(with_ipv6=":" in host) if everywhere(host) else (host,)
            announcement = announced(port=port, addresses=addresses)
        with announcement, suppress(asyncio.CancelledError):
            asyncio.run(_until_told(server, listening, started=lambda: started(host, port)))
    return server.given_bytes


def _known_state(states: StateFile) -> DeviceState:
    """Return the state without making one: that is the agent's, which holds a lock then."""
    if not states.path.exists():
        return fresh_state()
    try:
        return states.load()
    except DeviceError:
        # The agent tells about it; here there is nothing to give.
        return fresh_state()


async def _until_told(server: ShareServer, listening: socket.socket, *, started: Callable[[], None]) -> None:
    serving = asyncio.ensure_future(server.serve(listening, started=started))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with suppress(asyncio.CancelledError):
        await serving
