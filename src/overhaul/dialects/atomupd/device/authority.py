"""Who may call which method of the daemon: polkit decides; where there is none, only root may change anything."""

from enum import StrEnum
from typing import Protocol

from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

_POLKIT = "org.freedesktop.PolicyKit1"
_BUS = "org.freedesktop.DBus"
_INTERACTIVE = 1


class Action(StrEnum):
    """What polkit knows the methods as; `deploy/dbus` has the rules."""

    CHECK = "com.steampowered.atomupd1.check-for-updates"
    START = "com.steampowered.atomupd1.start-upgrade"
    DOWNGRADE = "com.steampowered.atomupd1.start-downgrade"
    CUSTOM = "com.steampowered.atomupd1.start-custom-update"
    MANAGE = "com.steampowered.atomupd1.manage-pending-update"
    SWITCH = "com.steampowered.atomupd1.switch-variant-or-branch"
    CONFIGURE = "com.steampowered.atomupd1.manage-configuration"


class Authority(Protocol):
    """Whoever decides."""

    async def allows(self, sender: str, action: Action, *, interactive: bool) -> bool:
        """Whether the connection `sender` may do `action`; polkit may ask a person when `interactive`."""


class PolkitAuthority:
    """Asks polkit on the same bus; without polkit, asks the bus whether the caller is root."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus

    async def allows(self, sender: str, action: Action, *, interactive: bool) -> bool:
        """Whether the connection `sender` may do `action`."""
        reply = await self._bus.call(
            Message(
                destination=_POLKIT,
                path="/org/freedesktop/PolicyKit1/Authority",
                interface=f"{_POLKIT}.Authority",
                member="CheckAuthorization",
                signature="(sa{sv})sa{ss}us",
                body=[
                    ["system-bus-name", {"name": Variant("s", sender)}],
                    str(action),
                    {},
                    _INTERACTIVE if interactive else 0,
                    "",
                ],
            )
        )
        if reply is not None and reply.message_type is MessageType.METHOD_RETURN:
            return bool(reply.body[0][0])
        if reply is not None and reply.error_name in {f"{_BUS}.Error.ServiceUnknown", f"{_BUS}.Error.NameHasNoOwner"}:
            return await self._is_root(sender)
        return False

    async def _is_root(self, sender: str) -> bool:
        reply = await self._bus.call(
            Message(
                destination=_BUS,
                path="/org/freedesktop/DBus",
                interface=_BUS,
                member="GetConnectionUnixUser",
                signature="s",
                body=[sender],
            )
        )
        return reply is not None and reply.message_type is MessageType.METHOD_RETURN and reply.body[0] == 0
