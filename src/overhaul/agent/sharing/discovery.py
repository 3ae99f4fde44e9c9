"""Finding neighbours, and being found, by multicast DNS (DNS-SD service `_overhaul._tcp`).

An announcement names no release and not this device: its name is random at each start. Whoever answers is believed no
more than an address in the configuration; one that announces much more than a device has hides no other. The library
is an extra, `overhaul[lan]`.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address
from threading import Condition
from typing import TYPE_CHECKING

from overhaul.errors import DeviceError
from overhaul.transfer.nearness import is_near

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

SERVICE = "_overhaul._tcp.local."
#: Neighbours that have not answered by then are not waited for.
PATIENCE_S = 2.0
_MAX_FOUND = 16
#: A device gives on one port; its address is taken for no more than these.
_MAX_PORTS = 2
#: Announcements whose address did not come with them are asked for it, so many at once.
_ASKED_AT_ONCE = 4


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
        from zeroconf import ServiceBrowser, ServiceInfo
    except ImportError as error:
        raise DiscoveryMissingError from error
    found = _Found()
    until = time.monotonic() + patience_s
    with _zeroconf(interfaces) as zeroconf, ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:

        def changed(*, name: str, **_more: object) -> None:
            info = ServiceInfo(SERVICE, name)
            if info.load_from_cache(zeroconf):
                found.add(info)
            else:
                pool.submit(ask, info)

        def ask(info: "ServiceInfo") -> None:
            left_ms = int((until - time.monotonic()) * 1000)
            if left_ms > 0 and info.request(zeroconf, left_ms):
                found.add(info)

        browser = ServiceBrowser(zeroconf, SERVICE, handlers=[changed])
        try:
            found.wait_for(enough, until=until)
        finally:
            browser.cancel()
            pool.shutdown(cancel_futures=True)
    return found.addresses[:enough]


class _Found:
    """What was found so far; filled by other threads."""

    def __init__(self) -> None:
        self._ports: dict[str, list[int]] = {}
        self._changed = Condition()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [(address, port) for address, ports in self._ports.items() for port in ports]

    def add(self, info: "ServiceInfo") -> None:
        """Take the near addresses of an announcement."""
        with self._changed:
            for address in filter(is_near, info.parsed_scoped_addresses()):
                ports = self._ports.setdefault(address, [])
                if info.port and info.port not in ports and len(ports) < _MAX_PORTS:
                    ports.append(info.port)
            self._changed.notify_all()

    def wait_for(self, enough: int, *, until: float) -> None:
        """Return when there are `enough`, or it is `until`."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.addresses) >= enough, timeout=until - time.monotonic())


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


def own_addresses(*, with_ipv6: bool = True) -> Sequence[str]:
    """Return the near addresses of this machine but those of loopback, without scopes.

    Raises:
        DiscoveryMissingError: The library is not installed.
    """
    return [address for address, _interface in _own_addresses() if with_ipv6 or ":" not in address]


def _own_addresses() -> Iterator[tuple[str, int]]:
    """Yield near addresses with the indexes of their interfaces."""
    try:
        import ifaddr  # comes with zeroconf
    except ImportError as error:
        raise DiscoveryMissingError from error
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            address = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            if is_near(address) and not ip_address(address).is_loopback:
                yield address, adapter.index or 0


@contextmanager
def _zeroconf(interfaces: Sequence[str] | None) -> Iterator["Zeroconf"]:
    from zeroconf import Zeroconf

    # Named one by one: left to itself the library takes no IPv6, and networks of strangers.
    chosen: list[str | int] = list(interfaces or ())
    if not chosen:
        chosen = [interface if ":" in address else address for address, interface in _own_addresses()]
    if not chosen:
        raise DiscoveryFailedError(reason="this device has no private or link-local address")
    try:
        zeroconf = Zeroconf(interfaces=list(dict.fromkeys(chosen)))
    except OSError as error:
        raise DiscoveryFailedError(reason=error.strerror or str(error)) from error
    try:
        yield zeroconf
    finally:
        zeroconf.close()
