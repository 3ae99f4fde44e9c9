"""Holding a shutdown back while deployments change: a lock of logind, let go by closing a descriptor."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

from overhaul.host.dbus import BusCallError

_SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
_DESTINATION = "org.freedesktop.login1"
_TIMEOUT_S = 25.0


@contextmanager
def shutdown_blocked(*, why: str, address: str | None = None) -> Iterator[None]:
    """Hold a blocking lock on the shutdown inside the block.

    Raises:
        BusCallError: logind does not answer or refuses.
    """
    descriptor = _take(why, address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or _SYSTEM_BUS)
    try:
        yield
    finally:
        os.close(descriptor)


def _take(why: str, address: str) -> int:
    from dbus_fast import Message, MessageType
    from dbus_fast.aio import MessageBus
    from dbus_fast.errors import DBusFastError

    def failed(reason: str) -> BusCallError:
        return BusCallError(destination=_DESTINATION, member="Inhibit", reason=reason)

    async def call() -> int:
        bus = await MessageBus(bus_address=address, negotiate_unix_fd=True).connect()
        try:
            reply = await bus.call(
                Message(
                    destination=_DESTINATION,
                    path="/org/freedesktop/login1",
                    interface="org.freedesktop.login1.Manager",
                    member="Inhibit",
                    signature="ssss",
                    body=["shutdown", "ostree-update", why, "block"],
                )
            )
            if reply is None:
                raise failed("no answer")
            if reply.message_type is MessageType.ERROR:
                raise failed(" ".join(str(part) for part in reply.body) or str(reply.error_name))
            # The library leaves it to us; a copy would keep the lock when ours is closed.
            return int(reply.unix_fds[reply.body[0]])
        finally:
            bus.disconnect()
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call] # dbus-fast leaves it untyped

    try:
        return asyncio.run(asyncio.wait_for(call(), _TIMEOUT_S))
    except TimeoutError as error:
        raise failed(f"no answer within {_TIMEOUT_S:g} s") from error
    except (OSError, EOFError, DBusFastError, IndexError) as error:
        raise failed(str(error) or type(error).__name__) from error
