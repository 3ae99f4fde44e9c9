"""Asking whether the connection is metered over a real D-Bus: a private dbus-daemon, and a stand-in NetworkManager.

The stand-in has the real service's name, path, interface, property and type (`u`, NMMetered); it manages nothing.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import pytest
from dbus_fast import PropertyAccess
from dbus_fast.aio import MessageBus
from dbus_fast.annotations import DBusSignature
from dbus_fast.service import ServiceInterface, dbus_property
from tests.interop.test_logind_restart import bus, closed

from overhaul.host.metered import ask_network_manager

UInt32 = Annotated[int, DBusSignature("u")]


class StandInNetworkManager(ServiceInterface):
    """Holds the one property."""

    def __init__(self, metered: int) -> None:
        super().__init__("org.freedesktop.NetworkManager")
        self._metered = metered

    @dbus_property(access=PropertyAccess.READ, name="Metered")
    def metered(self) -> UInt32:
        return self._metered


@contextmanager
def serving(address: str, service: ServiceInterface) -> Iterator[None]:
    """Serve on the bus from a thread of its own until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> MessageBus:
        connection = await MessageBus(bus_address=address).connect()
        connection.export("/org/freedesktop/NetworkManager", service)
        await connection.request_name("org.freedesktop.NetworkManager")
        return connection

    connection = asyncio.run_coroutine_threadsafe(begin(), loop).result(120)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(closed(connection), loop).result(120)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize(("value", "metered"), [(0, False), (1, True), (2, False), (3, True), (4, False), (77, False)])
def test_what_network_manager_says_counts_as_it_means_it(tmp_path: Path, value: int, metered: bool) -> None:
    with bus(tmp_path) as address, serving(address, StandInNetworkManager(value)):
        assert ask_network_manager(address=address) is metered


def test_without_network_manager_nothing_is_metered(tmp_path: Path) -> None:
    with bus(tmp_path) as address:
        assert ask_network_manager(address=address) is False


def test_without_a_bus_nothing_is_metered(tmp_path: Path) -> None:
    assert ask_network_manager(address=f"unix:path={tmp_path}/nothing") is False
