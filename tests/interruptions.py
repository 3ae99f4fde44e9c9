"""Updates over a network that cuts every connection, by agents that are killed again and again.

Bytes are counted where they leave for the device, so what a killed agent left in its buffers counts too. An agent is
killed either when the network has passed so many bytes or just before its n-th durable operation; both by chance.
"""

import gzip
import os
import random
import signal
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from overhaul.agent.outcomes import Checked
from overhaul.agent.updating import update
from overhaul.agent.wiring import open_device
from overhaul.install.settings import load_settings
from overhaul.progress import Silence
from tests.crash.killing import run_killed_at
from tests.fleet import RealDevice
from tests.hostile_network import Exchange, Network, cutting, honest
from tests.tools import need
from tests.unit.content.delta.images import code_like, edited, make_image, write_tree


@dataclass
class Tally:
    """What one update cost until it was there."""

    body_bytes: int = 0
    kills: int = 0
    cuts: int = 0

    @property
    def interruptions(self) -> int:
        """Kills and cuts."""
        return self.kills + self.cuts


def packed_image(directory: Path, version: int, *, size_kib: int) -> Path:
    """Write an ext4 image of which a third are files packed by gzip and zstd, with edits in each version."""
    chance = random.Random("shared")
    plain = {f"usr/lib/part{number}": code_like(chance, 24 * size_kib) for number in range(6)}
    packed = {f"usr/share/doc{number}.gz": code_like(chance, 24 * size_kib) for number in range(6)}
    packed |= {f"usr/lib/firmware{number}.zst": code_like(chance, 24 * size_kib) for number in range(6)}
    files = plain | packed
    for step in range(version):
        chance = random.Random(step)
        for name in files:
            files[name] = edited(chance, files[name]) + chance.randbytes(3 * size_kib)
    tree = directory / f"tree-{version}"
    write_tree(tree, {name: _pack(name, data) for name, data in files.items()})
    return make_image(tree, directory / f"{version}.img", size_kib=size_kib)


def _pack(name: str, data: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data, 9, mtime=0)
    if name.endswith(".zst"):
        return subprocess.run([need("zstd"), "-19", "-q", "-c"], input=data, capture_output=True, check=True).stdout
    return data


def update_once(device: RealDevice) -> None:
    """Update as the agent does when it is started; waits between tries take no time."""
    opened = open_device(load_settings(device.configuration), sleep=lambda _seconds: None)
    answer = update(opened, progress=Silence())
    assert not isinstance(answer, Checked), answer


def undisturbed_bytes(device: RealDevice, up: Network) -> int:
    """Return how many bytes an update takes that nothing interrupts."""
    up.personality = honest
    before = up.body_bytes
    update_once(device)
    return up.body_bytes - before


def interrupted(
    device: RealDevice,
    up: Network,
    *,
    cut_within_bytes: int,
    kill_within_bytes: int,
    kill_within_steps: int,
    chance: random.Random,
    at_kill: Callable[[int], None] = lambda _kills: None,
    kills_at_most: int = 1 << 30,
) -> Tally:
    """Update a device, interrupted by chance, until it is done; `at_kill` hears of each kill."""
    tally = Tally()
    cut = cutting(cut_within_bytes, chance=chance)

    def cut_and_count(exchange: Exchange) -> None:
        cut(exchange)
        tally.cuts += not exchange.keeps_open

    up.personality = cut_and_count
    began = up.body_bytes
    while True:
        if tally.kills >= kills_at_most:
            update_once(device)
            killed = False
        elif chance.random() < 0.5:
            killed = _killed_after(up, chance.randrange(kill_within_bytes), lambda: update_once(device))
        else:
            killed = run_killed_at(lambda: update_once(device), chance.randrange(kill_within_steps)) is None
        if not killed:
            tally.body_bytes = up.body_bytes - began
            return tally
        tally.kills += 1
        at_kill(tally.kills)


def _killed_after(up: Network, body_bytes: int, action: Callable[[], None]) -> bool:
    """Do something in a child that is killed when so many bytes were sent to it; tell whether it was."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    left = body_bytes

    def count(amount: int) -> None:
        nonlocal left
        left -= amount
        if left <= 0:
            up.on_passed = lambda _amount: None
            os.kill(child, signal.SIGKILL)

    up.on_passed = count
    try:
        # Waited for without reaping, so that its number stays its own until nobody kills it any more.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    finally:
        up.on_passed = lambda _amount: None
        _pid, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert status == 0, "the agent failed"
    return False
