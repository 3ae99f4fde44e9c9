"""One call on the system bus, for programs that have no event loop of their own.

The library is imported on use: most runs of the agent never talk to the bus.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from overhaul.errors import DeviceError

#: What libdbus uses, too; `DBUS_SYSTEM_BUS_ADDRESS` overrides it as it does for every other program.
_SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"


class BusCallError(DeviceError):
    """A service on the system bus did not answer, or refused."""

    def __init__(self, *, destination: str, member: str, reason: str) -> None:
        self.destination = destination
        self.member = member
        self.reason = reason
        super().__init__(f"{destination} did not carry out {member} ({reason}); see whether its service runs.")


def call_system_bus(
    *,
    destination: str,
    path: str,
    interface: str,
    member: str,
    signature: str = "",
    body: Sequence[Any] = (),
    timeout_s: float = 25.0,
    address: str | None = None,
) -> list[Any]:
    """Call one method and return its answer's values.

    Raises:
        BusCallError: No bus, no such service, an error in answer, or no answer within `timeout_s`.
    """
    from dbus_fast import Message, MessageType
    from dbus_fast.aio import MessageBus
    from dbus_fast.errors import DBusFastError

    place = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or _SYSTEM_BUS

    def failed(reason: str) -> BusCallError:
        return BusCallError(destination=destination, member=member, reason=reason)

    async def call() -> list[Any]:
        bus = await MessageBus(bus_address=place).connect()
        try:
            message = Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=list(body),
            )
            reply = await bus.call(message)
        finally:
            bus.disconnect()
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call] # dbus-fast leaves it untyped
        if reply is None:
            raise failed("no answer")
        if reply.message_type is MessageType.ERROR:
            raise failed(" ".join(str(part) for part in reply.body) or str(reply.error_name))
        return list(reply.body)

    try:
        return asyncio.run(asyncio.wait_for(call(), timeout_s))
    except TimeoutError as error:
        raise failed(f"no answer within {timeout_s:g} s") from error
    except (OSError, EOFError, DBusFastError) as error:
        raise failed(str(error) or type(error).__name__) from error
