"""A guest with UEFI firmware in QEMU without acceleration, watched over its serial line."""

import queue
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.guests.volatile_disk import VolatileDisk
from tests.tools import need, need_file

FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
#: Without acceleration on a busy machine a start takes half a minute; after this one there is none.
SILENCE_S = 240.0
_TOLD = re.compile(r"GUEST (.+)")


class SilentGuestError(AssertionError):
    """The guest said nothing for a long time."""


class Guest:
    """One start of the machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.console: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def told(self, deadline: float | None = None) -> str | None:
        """Return the next line the device program told, or None when the machine is off.

        Raises:
            TimeoutError: `deadline`, on the monotonic clock, came first.
            SilentGuestError: Nothing was told for too long.
        """
        limit = SILENCE_S if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return self._lines.get(timeout=limit)
        except queue.Empty:
            if deadline is not None:
                raise TimeoutError from None
            raise SilentGuestError("\n".join(self.console[-60:])) from None

    def cut_power(self) -> None:
        """Take the power away at once."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode(errors="replace").strip()
            self.console.append(line)
            found = _TOLD.search(line)
            if found is not None:
                self._lines.put(found[1])
        self._lines.put(None)


def machine(*, drive: str, variables: Path, memory_mib: int) -> list[str]:
    """Return the command of a machine that starts from `drive`, as QEMU's option has it.

    A restart ends QEMU: the test switches it on again, which is the same to firmware and disk.
    """
    need_file(FIRMWARE, package="ovmf")
    return [
        *_machine(drive=drive, memory_mib=memory_mib),
        "-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}",
        "-drive", f"if=pflash,format=raw,file={variables}",
    ]  # fmt: skip


def machine_without_loader(
    *, drive: str, memory_mib: int, kernel: Path, initramfs: Path, arguments: Sequence[str]
) -> list[str]:
    """Return the command of a machine whose kernel QEMU starts: it stands in for firmware and boot loader."""
    return [
        *_machine(drive=drive, memory_mib=memory_mib),
        "-kernel", str(kernel), "-initrd", str(initramfs), "-append", " ".join(arguments),
    ]  # fmt: skip


def _machine(*, drive: str, memory_mib: int) -> list[str]:
    return [
        need("qemu-system-x86_64"), "-accel", "tcg,thread=multi", "-machine", "q35", "-smp", "1",
        "-m", str(memory_mib), "-nodefaults", "-display", "none",
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", "-no-reboot",
        "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
        "-drive", f"if=virtio,format=raw,{drive}",
    ]  # fmt: skip


@contextmanager
def started(disk: VolatileDisk, variables: Path) -> Iterator[Guest]:
    """Switch the machine on; it is off after the block."""
    command = machine(drive=f"cache=writeback,file={disk.address}", variables=variables, memory_mib=384)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        guest = Guest(process)
        try:
            yield guest
        finally:
            guest.cut_power()
