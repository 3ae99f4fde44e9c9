"""Whether what goes over the network costs by volume, as NetworkManager knows it.

Where nobody knows, it does not: a system without NetworkManager is hardly one with a telephone's connection.
"""

from collections.abc import Callable
from dataclasses import dataclass

from overhaul.host.dbus import BusCallError, call_system_bus

#: NM_METERED_YES and NM_METERED_GUESS_YES.
_METERED = frozenset({1, 3})
_REMEMBERED_S = 30.0


def ask_network_manager(*, address: str | None = None) -> bool:
    """Return whether NetworkManager calls the connection in use metered; `address` is another bus than the system's."""
    try:
        (value,) = call_system_bus(
            destination="org.freedesktop.NetworkManager",
            path="/org/freedesktop/NetworkManager",
            interface="org.freedesktop.DBus.Properties",
            member="Get",
            signature="ss",
            body=["org.freedesktop.NetworkManager", "Metered"],
            timeout_s=5.0,
            address=address,
        )
    except BusCallError:
        return False
    return int(getattr(value, "value", value)) in _METERED


@dataclass
class MeteredLink:
    """Remembers the answer for a while."""

    monotonic: Callable[[], float]
    ask: Callable[[], bool] = ask_network_manager
    _answer: bool = False
    _until: float = float("-inf")

    def is_metered(self) -> bool:
        """Tell whether the connection in use is metered."""
        if self.monotonic() >= self._until:
            self._answer = self.ask()
            self._until = self.monotonic() + _REMEMBERED_S
        return self._answer
