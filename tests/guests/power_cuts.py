"""The life of a device whose power is cut at random moments, and what must hold after each cut.

A moment is drawn in two steps, so that short steps are hit as often as long ones: which phase, and when within it,
evenly over the time the phase took when it was last not cut.

    firmware          the machine is switched on: UEFI, the boot loader, the kernel's start
    initramfs         our initramfs until the root is mounted
    system            the root's init until the agent has begun
    update            trust, policy, planning
    mark-bad          the boot loader is told not to take the slot
    assemble          the slot is written and read back
    try-next          the boot loader is told to try it; for systemd-boot the kernel is copied
    armed, reboot     the agent notes it; the file systems are unmounted
    trial-firmware    as `firmware`, while the boot loader counts an attempt
    confirm           health checks
    mark-good         the boot loader is told to keep the slot
    marked-good       the agent notes it
    given-up          the agent has turned back from a release that is not healthy
"""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from overhaul.publishing.boot_partition import Loader
from tests.guests.machine import Guest, started
from tests.guests.scene import GOOD_CHANNEL, NEW, OLD, SICK, Scene
from tests.guests.volatile_disk import VolatileDisk

UPDATE_PHASES = ("firmware", "initramfs", "system", "update", "mark-bad", "assemble", "try-next", "armed", "reboot")
GOOD_PHASES = (*UPDATE_PHASES, "trial-firmware", "confirm", "mark-good", "marked-good")
SICK_PHASES = (*UPDATE_PHASES, "trial-firmware", "confirm", "mark-bad", "given-up")
#: Seconds on a machine that is busy; what a phase really takes is learned.
TYPICAL_S = {
    "firmware": 12.0, "initramfs": 0.6, "system": 5.0, "update": 2.5, "mark-bad": 0.05, "assemble": 7.0,
    "try-next": 2.0, "armed": 0.05, "reboot": 0.4, "trial-firmware": 12.0, "confirm": 0.2, "mark-good": 0.1,
    "marked-good": 0.05, "given-up": 0.1,
}  # fmt: skip
_TRIAL_PHASES = frozenset({"trial-firmware", "confirm", "mark-good", "marked-good", "given-up"})
#: A device that has not come to an end after so many starts never will.
_STARTS_MAX = 60
_WORD = re.compile(r"(\w+)=(\S+)")


@dataclass(frozen=True)
class Cut:
    """One power cut."""

    phase: str
    after_s: float
    kept_sectors: int
    lost_sectors: int

    def __str__(self) -> str:
        return f"{self.phase}, after {self.after_s:.2f} s: {self.lost_sectors} sectors lost, {self.kept_sectors} kept"


@dataclass
class Life:
    """What happened to one device."""

    loader: Loader
    channel: str
    cuts: list[Cut] = field(default_factory=list)
    #: Slot and release of every start that came up, in order.
    starts: list[str] = field(default_factory=list)
    #: How long each phase took when it was last not cut.
    durations: dict[str, float] = field(default_factory=lambda: dict(TYPICAL_S))
    end: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Return the life in a few lines."""
        landed = ", ".join(f"{phase} {count}" for phase, count in Counter(cut.phase for cut in self.cuts).items())
        starts = ", ".join(f"{start} {count}" for start, count in Counter(self.starts).items())
        lost, kept = (sum(getattr(cut, name) for cut in self.cuts) for name in ("lost_sectors", "kept_sectors"))
        return (
            f"{self.loader}/{self.channel}: {len(self.cuts)} cuts ({landed}), {lost} unflushed sectors lost and {kept} "
            f"kept, {len(self.starts)} starts came up ({starts}), end: slot {self.end['slot']} with "
            f"{self.end['release']}, {self.end['boot']}"
        )


class BrokenDeviceError(AssertionError):
    """The device did something that must never happen."""


def live(
    scene: Scene,
    loader: Loader,
    channel: str,
    phases: Sequence[str],
    chance: random.Random,
    *,
    tell: Callable[[str], None] = lambda _line: None,
) -> Life:
    """Take a new device to its end, with one power cut in each of `phases`, in their order.

    A phase that did not come again before the end is left out.
    """
    life = Life(loader, channel)
    waiting = list(phases)
    path, variables = scene.new_device(loader, channel)
    with VolatileDisk(path) as disk:
        is_trial = False
        for _ in range(_STARTS_MAX):
            with started(disk, variables) as guest:
                cut = _one_start(life, guest, waiting, chance, is_trial=is_trial)
                is_trial = _is_armed(guest, is_trial=is_trial)
            if cut is None:
                disk.settle()
            else:
                life.cuts.append(Cut(*cut, *disk.cut(chance)))
                del waiting[:1]
                tell(str(life.cuts[-1]))
            if life.end:
                break
        else:
            raise BrokenDeviceError(f"no end after {_STARTS_MAX} starts: {life}")
        life.end = {}
        with started(disk, variables) as guest:
            _one_start(life, guest, [], chance, is_trial=False)
    _require_good_end(life)
    return life


def _one_start(
    life: Life,
    guest: Guest,
    waiting: list[str],
    chance: random.Random,
    *,
    is_trial: bool,
) -> tuple[str, float] | None:
    """Watch one start; return the phase and moment of its power cut, or None when the machine switched itself off."""
    while is_trial and waiting and waiting[0] in UPDATE_PHASES:
        # They are over; the last cut fell behind them.
        waiting.pop(0)
    phase, began = "trial-firmware" if is_trial else "firmware", time.monotonic()
    deadline: float | None = None
    while True:
        if deadline is None and waiting and waiting[0] == phase:
            deadline = began + chance.uniform(0.0, life.durations[phase])
        try:
            told = guest.told(deadline)
        except TimeoutError:
            guest.cut_power()
            return phase, time.monotonic() - began
        has_ended = told is None or told.startswith("phase ")
        if has_ended:
            life.durations[phase] = time.monotonic() - began
        if told is None:
            return None
        _take(life, guest, told)
        if has_ended and deadline is not None:
            # The phase was shorter than was learned of it; at its end the power goes away all the same.
            guest.cut_power()
            return phase, time.monotonic() - began
        if told.startswith("up ") and "phase=trial" in told:
            # So are these, though the device had not told that it was armed.
            while waiting and waiting[0] in {*UPDATE_PHASES, "trial-firmware"}:
                waiting.pop(0)
        if told.startswith("phase "):
            phase, began = told.removeprefix("phase "), time.monotonic()


def _take(life: Life, guest: Guest, told: str) -> None:
    """Look at what the device told, and refuse what must never happen."""
    kind, _, rest = told.partition(" ")
    facts = dict(_WORD.findall(rest))
    if kind in {"trouble", "defect"}:
        raise BrokenDeviceError(f"{told}\n" + "\n".join(guest.console[-40:]))
    if kind == "up":
        life.starts.append(f"{facts['slot']}={facts['release']}")
        if facts["initrd"] != facts["release"]:
            raise BrokenDeviceError(f"a kernel started with another slot's root: {told}")
        if facts["release"] not in {OLD, NEW, SICK} or (facts["release"] == OLD) != (facts["slot"] == "A"):
            raise BrokenDeviceError(f"neither the old nor the new release: {told}")
    if kind == "done":
        life.end = facts


def _is_armed(guest: Guest, *, is_trial: bool) -> bool:
    """Say whether the next start is one of the new slot, as far as the device has told."""
    told = " ".join(guest.console)
    if "GUEST phase marked-good" in told or "GUEST phase given-up" in told:
        return False
    return is_trial or "phase=trial" in told or "GUEST phase armed" in told


def _require_good_end(life: Life) -> None:
    wanted = ("B", NEW) if life.channel == GOOD_CHANNEL else ("A", OLD)
    reached = (life.end.get("slot"), life.end.get("release"))
    if reached != wanted or life.end["boot"] != "good" or life.end["primary"] != life.end["slot"]:
        raise BrokenDeviceError(f"the device ended as {life.end}: {life}")


def choose_phases(phases: Sequence[str], count: int, chance: random.Random) -> list[str]:
    """Return `count` phases in the order in which they come; each as often as the others, give or take one."""
    rounds = [chance.sample(range(len(phases)), len(phases)) for _ in range(-(-count // len(phases)))]
    chosen = [place for one in rounds for place in one][:count]
    trials = [place for place in sorted(chosen) if phases[place] in _TRIAL_PHASES]
    # Nine attempts: one must be left for the start that is not cut.
    spared = set(trials[8:])
    return [phases[place] for place in sorted(chosen) if place not in spared]
