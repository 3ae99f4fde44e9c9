"""`atomupd-daemon`: serves `com.steampowered.Atomupd1` on the system bus until it is told to end.

Exit codes: 0 told to end; 1 it could not begin, or lost the bus; 2 wrong usage.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overhaul.errors import OperatorError, OverhaulError

_SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
_CLIENT = "steamos-atomupd-client"
#: An idle RAUC answers at once.
_RAUC_ANSWERS_S = 3.0
_log = logging.getLogger("atomupd")


class BusNotUsableError(OperatorError):
    """The system bus cannot be used."""

    def __init__(self, *, address: str, reason: str) -> None:
        self.address = address
        self.reason = reason
        super().__init__(f"The daemon cannot serve on the bus {address}: {reason}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve and return the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.INFO,
        format="%(levelname)s:%(filename)s:%(lineno)d: %(message)s",
        stream=sys.stderr,
    )
    try:
        asyncio.run(_serve(options))
    except OverhaulError as error:
        _log.error("%s", error)
        return 1
    return 0


async def _serve(options: argparse.Namespace) -> None:
    # What is heavy is imported after the options were understood.
    from dbus_fast import Message, MessageFlag, MessageType, NameFlag, RequestNameReply
    from dbus_fast.aio import MessageBus
    from dbus_fast.errors import DBusFastError

    from overhaul.dialects.atomupd.device.authority import PolkitAuthority
    from overhaul.dialects.atomupd.device.daemon import UpdateDaemon
    from overhaul.dialects.atomupd.device.daemon_interface import NAME, PATH, AtomupdInterface, remember_caller
    from overhaul.dialects.atomupd.device.places import Places
    from overhaul.dialects.atomupd.device.raucstate import INSTALLER, PROPERTIES, RAUC

    address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or _SYSTEM_BUS
    try:
        bus = await MessageBus(bus_address=address).connect()
    except (OSError, EOFError, DBusFastError) as error:
        raise BusNotUsableError(address=address, reason=str(error) or type(error).__name__) from error

    async def ask(message: Message) -> Any:
        reply = await bus.call(message)
        return reply.body[0] if reply is not None and reply.message_type is MessageType.METHOD_RETURN else None

    async def rauc_process() -> int | None:
        """Return the process of a RAUC that is at work; one that idles is nobody's business."""
        # No call may start it only to be told that it does nothing.
        flags = MessageFlag.NO_AUTOSTART
        question = Message(
            destination=RAUC,
            path="/",
            interface=PROPERTIES,
            member="Get",
            signature="ss",
            body=[INSTALLER, "Operation"],
            flags=flags,
        )
        try:
            operation = await asyncio.wait_for(ask(question), _RAUC_ANSWERS_S)
        except TimeoutError:
            # It hangs, or a daemon before us stopped it and was killed.
            pass
        else:
            if operation is None or operation.value == "idle":
                return None
        process = await ask(
            Message(
                destination="org.freedesktop.DBus",
                path="/org/freedesktop/DBus",
                interface="org.freedesktop.DBus",
                member="GetConnectionUnixProcessID",
                signature="s",
                body=[RAUC],
            )
        )
        return None if process is None else int(process)

    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    interface = AtomupdInterface(PolkitAuthority(bus))
    daemon = UpdateDaemon(
        Places(root=options.root),
        client=_client(options.client),
        changed=interface.show_changes,
        rauc_process=lambda: asyncio.ensure_future(rauc_process()),
        manifest=options.manifest_file,
        is_debugging=options.debug,
    )
    interface.daemon = daemon
    bus.add_message_handler(remember_caller)
    bus.export(PATH, interface)
    try:
        await daemon.begin()
        # Asked for last: who calls by this name finds everything in place.
        if await bus.request_name(NAME, NameFlag.DO_NOT_QUEUE) is not RequestNameReply.PRIMARY_OWNER:
            raise BusNotUsableError(address=address, reason=f"another program has the name {NAME}")
        _log.info("Serving %s", NAME)
        # Beside everything else: a network that swallows packets must not keep the first caller waiting.
        asking = asyncio.create_task(daemon.refresh_choices())
        lost = asyncio.create_task(bus.wait_for_disconnect())  # type: ignore[no-untyped-call] # dbus-fast leaves it so
        told = asyncio.create_task(ending.wait())
        await asyncio.wait({lost, told}, return_when=asyncio.FIRST_COMPLETED)
        asking.cancel()
        if not told.done():
            raise BusNotUsableError(address=address, reason="it closed the connection")
    finally:
        await daemon.installation.close()
        bus.disconnect()


def _client(given: str) -> list[str]:
    if given:
        return [given]
    beside = Path(sys.argv[0]).resolve().with_name(_CLIENT)
    return [str(beside) if beside.exists() else _CLIENT]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atomupd-daemon", description="Serve com.steampowered.Atomupd1 on the system bus."
    )
    parser.add_argument("-d", "--debug", action="store_true", help="log more, and let the client log more")
    parser.add_argument("--manifest-file", type=Path, metavar="FILE", help="what runs on this device")
    parser.add_argument("--client", default="", metavar="PROGRAM", help=f"instead of {_CLIENT}")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="where etc, run, usr and var are")
    return parser


if __name__ == "__main__":
    sys.exit(main())
