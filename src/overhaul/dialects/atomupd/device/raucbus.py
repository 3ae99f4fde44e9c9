"""Installing over D-Bus: `de.pengutronix.rauc.Installer`, which `rauc install` itself calls.

What this gains over the command is the exact error, the progress of RAUC's own steps where there is no journal, and
a RAUC that is busy told apart from one that failed.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from overhaul.dialects.atomupd.device.installing import Bundle, InstallationFailedError
from overhaul.dialects.atomupd.device.progress import Tell
from overhaul.dialects.atomupd.device.rauc import told_from_journal
from overhaul.dialects.atomupd.device.raucstate import INSTALLER, PROPERTIES, RAUC
from overhaul.errors import BusyError
from overhaul.host.dbus import BusCallError

_SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
_MATCHES = (
    f"type='signal',sender='{RAUC}',path='/',interface='{INSTALLER}',member='Completed'",
    f"type='signal',sender='{RAUC}',path='/',interface='{PROPERTIES}',member='PropertiesChanged'",
    f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{RAUC}'",
)


class RaucBusyError(BusyError):
    """RAUC is installing something already."""

    def __init__(self, *, operation: str) -> None:
        self.operation = operation
        super().__init__(f"RAUC is busy ({operation}); wait until it has ended, then try again.")


class RaucBus:
    """Installs through RAUC's D-Bus interface."""

    def __init__(self, *, address: str | None = None) -> None:
        self._address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or _SYSTEM_BUS

    def install(self, bundle: Bundle, *, tell: Tell) -> None:
        """Install `bundle`; progress comes from the journal, and from RAUC's own steps where there is none."""
        with told_from_journal(tell) as journal_is_there:

            def take_percent(percent: int) -> None:
                # The journal knows more; two scales in turn would only jump about. RAUC is at 100 when it failed, too.
                if 0 < percent < 100 and not journal_is_there():
                    tell(f"{percent}%")

            asyncio.run(_install(self._address, bundle.url, take_percent))


async def _install(address: str, url: str, take_percent: Callable[[int], None]) -> None:
    from dbus_fast import Message, MessageType
    from dbus_fast.aio import MessageBus
    from dbus_fast.errors import DBusFastError

    def unanswered(member: str, reason: str) -> BusCallError:
        return BusCallError(destination=RAUC, member=member, reason=reason)

    try:
        bus = await MessageBus(bus_address=address).connect()
    except (OSError, EOFError, DBusFastError) as error:
        raise unanswered("InstallBundle", str(error) or type(error).__name__) from error
    completed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def take(message: Message) -> bool:
        if message.message_type is not MessageType.SIGNAL or completed.done():
            return False
        if message.member == "Completed":
            completed.set_result(int(message.body[0]))
        elif message.member == "NameOwnerChanged" and not message.body[2]:
            completed.set_exception(unanswered("InstallBundle", "its service ended while it installed"))
        elif message.member == "PropertiesChanged" and "Progress" in message.body[1]:
            take_percent(int(message.body[1]["Progress"].value[0]))
        return False

    async def call(member: str, *, signature: str = "", body: Any = (), standard: str = INSTALLER) -> list[Any]:
        to_bus = standard == "org.freedesktop.DBus"
        reply = await bus.call(
            Message(
                destination=standard if to_bus else RAUC,
                path="/org/freedesktop/DBus" if to_bus else "/",
                interface=standard,
                member=member,
                signature=signature,
                body=list(body),
            )
        )
        if reply is None or reply.message_type is MessageType.ERROR:
            raise unanswered(member, " ".join(map(str, reply.body)) if reply is not None else "no answer")
        return list(reply.body)

    async def read(name: str) -> str:
        [value] = await call("Get", signature="ss", body=(INSTALLER, name), standard=PROPERTIES)
        return str(value.value)

    try:
        bus.add_message_handler(take)
        for rule in _MATCHES:
            await call("AddMatch", signature="s", body=(rule,), standard="org.freedesktop.DBus")
        operation = await read("Operation")
        if operation != "idle":
            raise RaucBusyError(operation=operation)
        await call("InstallBundle", signature="sa{sv}", body=(url, {}))
        if await completed != 0:
            reason = await read("LastError")
            raise InstallationFailedError(url=url, reason=reason.rstrip(".") or "RAUC does not say why")
    finally:
        bus.disconnect()
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call] # dbus-fast leaves it untyped
