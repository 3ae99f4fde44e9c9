"""Restarting the device through logind, only when its owner's window and its running programs allow it.

logind lets root restart past an inhibitor, so the inhibitors are asked for here, and a program that blocks the
shutdown is waited for, at most as long as the configuration says. Nothing is ever forced: the update stays ready,
and the next run of the timer asks again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from overhaul.errors import BusyError
from overhaul.host.dbus import call_system_bus
from overhaul.install.window import Window

_DESTINATION = "org.freedesktop.login1"
_PATH = "/org/freedesktop/login1"
_INTERFACE = "org.freedesktop.login1.Manager"
_ASK_AGAIN_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Inhibitor:
    """A program that asked logind to hold something back."""

    what: frozenset[str]
    who: str
    why: str
    mode: str

    @property
    def blocks_restart(self) -> bool:
        """Whether it holds back a restart until it lets go; `delay` inhibitors are logind's own business."""
        return self.mode in {"block", "block-weak"} and "shutdown" in self.what


class RestartInhibitedError(BusyError):
    """Programs block the restart and did not let go in time."""

    def __init__(self, inhibitors: Sequence[Inhibitor]) -> None:
        self.inhibitors = tuple(inhibitors)
        names = "; ".join(f"{inhibitor.who} ({inhibitor.why})" for inhibitor in inhibitors)
        super().__init__(f"The restart is held back by {names}. The update stays ready and is asked for again later.")


class OutsideWindowError(BusyError):
    """The device may not restart at this hour."""

    def __init__(self, window: Window, now: datetime) -> None:
        self.window = window
        self.opens_at = window.opens_at(now)
        super().__init__(
            f"The device may restart only at {window}{'' if window.zone else ' local time'}; the update stays ready "
            f"and is asked for again then, next on {self.opens_at:%a %d %B at %H:%M}."
        )


class Restarter(Protocol):
    """Whoever can restart the device."""

    def restart(self, *, urgent: bool = False) -> bool:
        """Ask for a restart, at any hour when it is urgent; False when restarts are left to the owner."""


class NeverRestarts:
    """Leaves every restart to the owner."""

    def restart(self, *, urgent: bool = False) -> bool:
        """Do nothing."""
        del urgent
        return False


class LogindRestarter:
    """Restarts through logind."""

    def __init__(
        self,
        *,
        window: Window | None,
        wait_s: float,
        local_time: Callable[[], datetime],
        sleep: Callable[[float], None],
        address: str | None = None,
    ) -> None:
        self._window = window
        self._wait_s = wait_s
        self._local_time = local_time
        self._sleep = sleep
        self._address = address

    def restart(self, *, urgent: bool = False) -> bool:
        """Ask logind for a restart.

        Raises:
            OutsideWindowError: It is not the hour, and not urgent.
            RestartInhibitedError: A program still blocks it after the wait.
            BusCallError: logind does not answer or refuses.
        """
        now = self._local_time()
        if self._window is not None and not urgent and not self._window.holds(now):
            raise OutsideWindowError(self._window, now)
        waited_s = 0.0
        while blocking := [inhibitor for inhibitor in self.inhibitors() if inhibitor.blocks_restart]:
            if waited_s >= self._wait_s:
                raise RestartInhibitedError(blocking)
            pause_s = min(_ASK_AGAIN_S, self._wait_s - waited_s)
            self._sleep(pause_s)
            waited_s += pause_s
        self._call("Reboot", signature="b", body=[False])
        return True

    def inhibitors(self) -> list[Inhibitor]:
        """Return what programs asked logind to hold back."""
        (rows,) = self._call("ListInhibitors")
        return [
            Inhibitor(what=frozenset(str(what).split(":")), who=str(who), why=str(why), mode=str(mode))
            for what, who, why, mode, _uid, _pid in rows
        ]

    def _call(self, member: str, *, signature: str = "", body: Sequence[Any] = ()) -> list[Any]:
        return call_system_bus(
            destination=_DESTINATION,
            path=_PATH,
            interface=_INTERFACE,
            member=member,
            signature=signature,
            body=body,
            address=self._address,
        )
