"""Listening on an address of this machine."""

import socket

from overhaul.errors import OperatorError


class AddressUnavailableError(OperatorError):
    """The address cannot be listened on."""

    def __init__(self, *, host: str, port: int, reason: str) -> None:
        self.host = host
        self.port = port
        self.reason = reason
        super().__init__(
            f"{host} port {port} cannot be listened on ({reason}); give another --port, or 0 for any free one."
        )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host` and `port`; port 0 takes any free one.

    Raises:
        AddressUnavailableError: Somebody else has it, or it is not ours to take.
    """
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # The protocol must be named: asyncio sends answers at once only on sockets that say they are TCP.
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressUnavailableError(host=host, port=port, reason=str(error)) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise AddressUnavailableError(host=host, port=port, reason=error.strerror or str(error)) from error
    return listening
