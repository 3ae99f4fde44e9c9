"""Finding neighbours, and being found, by multicast DNS (DNS-SD service `_overhaul._tcp`).

An announcement names no release and not this device: its name is random at each start. Whoever answers is believed no
more than an address in the configuration. The library is an extra, `overhaul[lan]`.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from overhaul.errors import DeviceError
from overhaul.transfer.nearness import is_near

if TYPE_CHECKING:
    from zeroconf import Zeroconf

SERVICE = "_overhaul._tcp.local."
#: Neighbours that have not answered by then are not waited for.
PATIENCE_S = 2.0
_MAX_FOUND = 16


class DiscoveryMissingError(DeviceError):
    """Neighbours shall be found, and the library for it is not there."""

    def __init__(self) -> None:
        super().__init__(
            "Neighbours are found by the library zeroconf, which is not installed; install `overhaul[lan]`, or name "
            "them as `neighbours` in the configuration."
        )


class DiscoveryFailedError(DeviceError):
    """The network takes no multicast."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"Neighbours cannot be looked for ({reason}); name them as `neighbours` in the configuration.")


def find_neighbours(
    *, patience_s: float = PATIENCE_S, interfaces: Sequence[str] | None = None, enough: int = _MAX_FOUND
) -> list[tuple[str, int]]:
    """Return near addresses that announce themselves within `patience_s`, at most `enough`.

    Raises:
        DiscoveryMissingError: The library is not installed.
        DiscoveryFailedError: Nothing can be asked here.
    """
    try:
        from zeroconf import ServiceBrowser
    except ImportError as error:
        raise DiscoveryMissingError from error
    import queue

    names: queue.SimpleQueue[str] = queue.SimpleQueue()

    def changed(*, name: str, **_more: object) -> None:
        names.put(name)

    found: dict[tuple[str, int], None] = {}
    with _zeroconf(interfaces) as zeroconf:
        browser = ServiceBrowser(zeroconf, SERVICE, handlers=[changed])
        try:
            until = time.monotonic() + patience_s
            while (left := until - time.monotonic()) > 0 and len(found) < enough:
                try:
                    name = names.get(timeout=left)
                except queue.Empty:
                    break
                info = zeroconf.get_service_info(SERVICE, name, timeout=max(1, int(left * 1000)))
                if info is not None and info.port:
                    found.update(
                        ((address, info.port), None) for address in info.parsed_scoped_addresses() if is_near(address)
                    )
        finally:
            browser.cancel()
    return list(found)[:enough]


@contextmanager
def announced(*, port: int, addresses: Sequence[str], interfaces: Sequence[str] | None = None) -> Iterator[None]:
    """Announce this device for the length of a block.

    Raises:
        DiscoveryMissingError: The library is not installed.
        DiscoveryFailedError: Nothing can be announced here.
    """
    try:
        from zeroconf import ServiceInfo
    except ImportError as error:
        raise DiscoveryMissingError from error
    name = secrets.token_hex(6)
    with _zeroconf(interfaces) as zeroconf:
        info = ServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            port=port,
            parsed_addresses=list(addresses),
            server=f"overhaul-{name}.local.",
        )
        zeroconf.register_service(info)
        try:
            yield
        finally:
            zeroconf.unregister_service(info)


@contextmanager
def _zeroconf(interfaces: Sequence[str] | None) -> Iterator["Zeroconf"]:
    from zeroconf import InterfaceChoice, Zeroconf

    try:
        zeroconf = Zeroconf(interfaces=list(interfaces) if interfaces else InterfaceChoice.All)
    except OSError as error:
        raise DiscoveryFailedError(reason=error.strerror or str(error)) from error
    try:
        yield zeroconf
    finally:
        zeroconf.close()
