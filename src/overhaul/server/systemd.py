"""What systemd and a service tell each other through the environment: sockets handed over, readiness reported."""

import socket
from collections.abc import Mapping

#: The first descriptor that a socket unit hands over.
_FIRST_SOCKET = 3


def handed_over_socket(environment: Mapping[str, str], *, process_id: int) -> socket.socket | None:
    """Return the listening socket of a socket unit, or None when there is none for this process."""
    if environment.get("LISTEN_PID") != str(process_id) or environment.get("LISTEN_FDS", "0") in {"", "0"}:
        return None
    handed_over = socket.socket(fileno=_FIRST_SOCKET)
    handed_over.set_inheritable(False)
    return handed_over


def notify(environment: Mapping[str, str], state: str) -> bool:
    """Tell the supervisor `state`, such as `READY=1`; return False when nobody wants to know."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        # A leading @ means the abstract namespace, which the kernel spells with a zero byte.
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(state.encode())
    return True
