"""Restarting over a real D-Bus: a private dbus-daemon, and a stand-in for logind that dbus-fast serves on it.

The stand-in has the real interface's name, path, methods and signatures; only the restart itself is a note.
"""

import asyncio
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import pytest
from dbus_fast.aio import MessageBus
from dbus_fast.annotations import DBusBool, DBusSignature
from dbus_fast.service import ServiceInterface, method
from tests.tools import need

from overhaul.errors import BusyError, DeviceError
from overhaul.host.dbus import BusCallError, call_system_bus
from overhaul.install.reboot import LogindRestarter, NeverRestarts, OutsideWindowError, RestartInhibitedError
from overhaul.install.window import Window, parse_window

_CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/> <allow eavesdrop="false"/> <allow own="*"/> <allow receive_sender="*"/>
  </policy>
</busconfig>
"""
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
Row = tuple[str, str, str, str, int, int]
Inhibitors = Annotated[list[list[str | int]], DBusSignature("a(ssssuu)")]


class StandInLogind(ServiceInterface):
    """Lists the inhibitors a test laid down, and notes restarts."""

    def __init__(self) -> None:
        super().__init__("org.freedesktop.login1.Manager")
        self.rows: list[Row] = []
        self.listed = 0
        self.restarts: list[bool] = []

    @method(name="ListInhibitors")
    def list_inhibitors(self) -> Inhibitors:
        self.listed += 1
        return [list(row) for row in self.rows]

    @method(name="Reboot")
    def reboot(self, interactive: DBusBool) -> None:
        self.restarts.append(interactive)


async def closed(connection: MessageBus) -> None:
    """Close a connection wholly."""
    connection.disconnect()
    await connection.wait_for_disconnect()  # type: ignore[no-untyped-call] # dbus-fast leaves it untyped


@contextmanager
def bus(directory: Path) -> Iterator[str]:
    """Run a dbus-daemon of our own and yield its address."""
    socket = directory / "bus"
    configuration = directory / "bus.conf"
    configuration.write_text(_CONFIGURATION.format(socket=socket))
    daemon = subprocess.Popen(
        [need("dbus-daemon"), f"--config-file={configuration}", "--nofork", "--nosyslog", "--print-address=1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert daemon.stdout is not None
        yield daemon.stdout.readline().strip()
    finally:
        daemon.terminate()
        daemon.communicate()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with bus(tmp_path) as made:
        yield made


@pytest.fixture
def logind(address: str) -> Iterator[StandInLogind]:
    service = StandInLogind()
    ready: Future[None] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        connection = await MessageBus(bus_address=address).connect()
        connection.export("/org/freedesktop/login1", service)
        await connection.request_name("org.freedesktop.login1")
        ready.set_result(None)
        await stop.wait()
        await closed(connection)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.result(timeout=120)
    yield service
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def restarter(
    address: str,
    *,
    window: Window | None = None,
    local: datetime = NOON,
    wait_s: float = 0,
    sleep: Callable[[float], None] = lambda _seconds: None,
) -> LogindRestarter:
    return LogindRestarter(window=window, wait_s=wait_s, local_time=lambda: local, sleep=sleep, address=address)


BLOCK: Row = ("shutdown:idle", "Backup", "writes the tape", "block", 0, 1)


def test_a_restart_nobody_holds_back_is_asked_for_without_questions(address: str, logind: StandInLogind) -> None:
    assert restarter(address).restart() is True
    assert logind.restarts == [False]


def test_a_program_that_blocks_the_shutdown_is_respected_and_named(address: str, logind: StandInLogind) -> None:
    logind.rows = [BLOCK]
    with pytest.raises(RestartInhibitedError, match=r"Backup \(writes the tape\)") as caught:
        restarter(address).restart()
    assert isinstance(caught.value, BusyError)
    assert logind.restarts == []


def test_inhibitors_of_other_things_and_delays_hold_nothing_back(address: str, logind: StandInLogind) -> None:
    logind.rows = [
        ("sleep:idle", "Player", "plays", "block", 0, 1),
        ("shutdown", "Editor", "saves first", "delay", 0, 2),
    ]
    restarter(address).restart()
    assert logind.restarts == [False]


def test_a_blocking_program_is_waited_for_until_it_lets_go(address: str, logind: StandInLogind) -> None:
    logind.rows = [BLOCK]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            logind.rows = []

    restarter(address, wait_s=60, sleep=sleep).restart()
    assert len(slept) == 3
    assert logind.restarts == [False]


def test_the_wait_for_a_blocking_program_is_bounded(address: str, logind: StandInLogind) -> None:
    logind.rows = [BLOCK]
    slept: list[float] = []
    with pytest.raises(RestartInhibitedError):
        restarter(address, wait_s=12, sleep=slept.append).restart()
    assert sum(slept) == 12
    assert logind.restarts == []


def test_outside_its_window_a_device_restarts_only_when_urgent(address: str, logind: StandInLogind) -> None:
    night = parse_window("02:00-05:00 UTC")
    with pytest.raises(OutsideWindowError, match=r"only at 02:00-05:00 UTC; .* next on Mon 02 March at 02:00"):
        restarter(address, window=night).restart()
    assert logind.listed == 0
    restarter(address, window=night, local=NOON.replace(hour=3)).restart()
    restarter(address, window=night).restart(urgent=True)
    assert logind.restarts == [False, False]


def test_even_an_urgent_restart_respects_inhibitors(address: str, logind: StandInLogind) -> None:
    logind.rows = [BLOCK]
    with pytest.raises(RestartInhibitedError):
        restarter(address).restart(urgent=True)


def test_a_bus_without_logind_is_an_error_that_names_it(address: str) -> None:
    with pytest.raises(BusCallError, match=r"org\.freedesktop\.login1"):
        restarter(address).restart()


def test_a_missing_bus_is_an_error_of_the_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="ListInhibitors"):
        restarter(f"unix:path={tmp_path}/nothing").restart()


def test_a_service_that_never_answers_is_given_up(address: str, tmp_path: Path) -> None:
    async def silent() -> MessageBus:
        connection = await MessageBus(bus_address=address).connect()
        await connection.request_name("org.example.Silent")
        connection.add_message_handler(lambda _message: True)
        return connection

    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(silent())
    with pytest.raises(BusCallError, match="no answer within"):
        call_system_bus(
            destination="org.example.Silent", path="/", interface="a.b", member="C", timeout_s=0.2, address=address
        )
    loop.run_until_complete(closed(connection))
    loop.close()


def test_a_device_may_leave_restarts_to_its_owner() -> None:
    assert NeverRestarts().restart(urgent=True) is False
