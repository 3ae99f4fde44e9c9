"""How much memory this process and its children took at most."""

import resource
from pathlib import Path


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process, or of a child that has ended where that took more.

    The kernel's VmHWM is read where it is told: unlike `ru_maxrss` it does not count what the process was before it
    executed this program. Of a child the kernel counts just that, so a child that took less than its parent did when
    it began cannot be told from one that took as much, and is not added.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return max(_high_water_bytes(Path("/proc/self/status")), children)


def _high_water_bytes(status: Path) -> int:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, amount = line.partition(":")
        if name == "VmHWM":
            return int(amount.split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
