"""What the checker of power cuts must know of each boot backend: one small adapter for each.

An adapter makes the loader's files as a factory would, opens the real backend on them, and plays the loader. The
rules by which it plays are those of `install.countdown`; that the real loaders keep them is proved elsewhere
(`tests/interop/test_grub.py`, `tests/interop/test_uboot.py`, `tests/guests`).
"""

import dataclasses
import itertools
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from overhaul.agent.ports import Device
from overhaul.host.processes import ProcessResult, ProgramFailedError, run
from overhaul.install.boot import BootControl
from overhaul.install.countdown import after_boot, chosen_slot, parse_variables, render_variables
from overhaul.install.envblock import MalformedEnvironmentError, read_block, write_block
from overhaul.install.fileboot import FileBoot
from overhaul.install.grub import GrubBoot
from overhaul.install.loaderentry import Entry, EntryName, in_loader_order, parse_name, render_entry
from overhaul.install.systemdboot import SystemdBoot
from overhaul.install.uboot import UBoot
from tests.uboot_environment import configure, make_environment, start_with_environment

SLOTS = ("A", "B")
_starts = itertools.count(1)


class Loader(Protocol):
    """A boot loader and the backend that talks to it."""

    name: str
    #: The loader's files below the device's directory; prefixes of paths.
    files: tuple[str, ...]
    #: Directories in which a rename is two operations.
    weak: Collection[str]

    def prepare(self, top: Path) -> None:
        """Make the loader's files of a device that leaves the factory."""

    def control(self, top: Path) -> BootControl:
        """Open the real backend on the device in `top`."""

    def agent(self, device: Device, top: Path) -> Device:
        """Return the agent `device` with the real backend in its place."""

    def start(self, top: Path) -> str:
        """Do what the loader does when the device is switched on, and return the slot that runs then."""


class _Sound:
    """The agent of the product, with a backend of the product."""

    def control(self, top: Path) -> BootControl:
        """Open the backend."""
        raise NotImplementedError

    def agent(self, device: Device, top: Path) -> Device:
        """Put the backend in its place."""
        return dataclasses.replace(device, boot=self.control(top))


class FileLoader(_Sound):
    """The JSON file, whose loader is part of the product (`simulate_boot`)."""

    name = "file"
    files: tuple[str, ...] = ("boot/",)
    weak: Collection[str] = ()

    def prepare(self, top: Path) -> None:
        """Make the file as a first start does."""
        (top / "boot").mkdir()
        self._boot(top).simulate_boot()

    def control(self, top: Path) -> BootControl:
        """Open the backend."""
        return self._boot(top)

    def start(self, top: Path) -> str:
        """Start the device."""
        return self._boot(top).simulate_boot()

    def _boot(self, top: Path) -> FileBoot:
        return FileBoot(top / "boot/boot.json", SLOTS)


class GrubLoader(_Sound):
    """GRUB's environment block."""

    name = "grub"
    files: tuple[str, ...] = ("boot/",)
    weak: Collection[str] = ()

    def prepare(self, top: Path) -> None:
        """Make the block as `grub-editenv create` does."""
        (top / "boot").mkdir()
        (top / "boot/grubenv").write_bytes(write_block({"saved_entry": "overhaul"}))
        note_start(top, "A")

    def control(self, top: Path) -> BootControl:
        """Open the backend."""
        return GrubBoot(top / "boot/grubenv", slot_paths(top), root=root_of(top))

    def start(self, top: Path) -> str:
        """Choose as `overhaul.cfg` does; a block that GRUB cannot read is as good as an empty one."""
        path = top / "boot/grubenv"
        try:
            environment = read_block(path.read_bytes())
        except (MalformedEnvironmentError, FileNotFoundError):
            slot = chosen_slot(parse_variables({}, SLOTS))
        else:
            variables = parse_variables(environment, SLOTS)
            slot = chosen_slot(variables)
            counted = after_boot(variables)
            if counted != variables:
                size = path.stat().st_size
                with path.open("r+b") as stream:
                    stream.write(write_block({**environment, **render_variables(counted)}, size=size))
                    stream.flush()
                    # The firmware has no cache that outlives the call.
                    os.fsync(stream.fileno())
        note_start(top, slot)
        return slot


class SystemdBootLoader(_Sound):
    """systemd-boot's entries on a partition without a journal.

    The kernel that stands for the one inside a slot is cut out of the slot's image and ends with its own digest, so
    that the loader sees whether it is whole also where no slot is at hand.
    """

    name = "systemd-boot"
    files: tuple[str, ...] = ("boot/",)
    weak: Collection[str] = ("boot", "boot/loader/entries", "boot/overhaul")

    def prepare(self, top: Path) -> None:
        """Make the partition as `overhaul provision` does."""
        (top / "boot/loader/entries").mkdir(parents=True)
        (top / "boot/overhaul/A").mkdir(parents=True)
        (top / "boot/loader/loader.conf").write_text("timeout 0\ndefault overhaul-*\n")
        (top / "boot/overhaul/A/linux").write_bytes(_kernel_of(top / "slot-A.img"))
        entry = render_entry("A", version=1, options="ro", has_initrd=False)
        (top / "boot/loader/entries/overhaul-A.conf").write_bytes(entry)
        note_start(top, "A")

    def control(self, top: Path) -> BootControl:
        """Open the backend."""
        return SystemdBoot(
            top / "boot",
            slot_paths(top),
            kernel="/vmlinuz",
            initrd="/initrd.img",
            options="ro",
            root=root_of(top),
            look_into=_looking_into,
        )

    def start(self, top: Path) -> str:
        """Choose, count and load as systemd-boot does."""
        directory = top / "boot/loader/entries"
        named = [(file.name, parse_name(file.name), file.read_bytes()) for file in directory.iterdir()]
        entries = [Entry(file=file, name=name, text=text) for file, name, text in named if name is not None]
        chosen = in_loader_order(entries)[0]
        slot, left = chosen.name.slot, chosen.name.left
        if left is not None:
            counted = EntryName(slot=slot, left=max(0, left - 1), done=chosen.name.done + 1)
            # What it cannot rename it would start uncounted.
            assert not (directory / str(counted)).exists(), f"{counted} is in the way of counting"
            (directory / chosen.file).rename(directory / str(counted))
        kernel = (top / f"boot/overhaul/{slot}/linux").read_bytes()
        assert sha256(kernel[:-32]).digest() == kernel[-32:], f"the kernel of slot {slot} is not whole"
        if (top / f"slot-{slot}.img").exists():
            assert kernel == _kernel_of(top / f"slot-{slot}.img"), f"slot {slot} is started with another kernel"
        note_start(top, slot)
        return slot


def _kernel_of(image: Path) -> bytes:
    piece = image.read_bytes()[8192 : 8192 + 5000]
    return piece + sha256(piece).digest()


@contextmanager
def _looking_into(image: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "vmlinuz").write_bytes(_kernel_of(image))
        yield Path(name)


class UBootLoader(_Sound):
    """U-Boot's environment, changed by the real `fw_setenv`."""

    name = "uboot"
    files: tuple[str, ...] = ("boot/",)
    weak: Collection[str] = ()

    def __init__(self) -> None:
        self._tools = RememberedTools()

    def prepare(self, top: Path) -> None:
        """Make both copies as `saveenv` does twice."""
        (top / "boot").mkdir()
        root_of(top).mkdir(exist_ok=True)
        # Long enough that a torn copy has a checksum of one state and variables of another.
        padding = f"AAA={'padding ' * 100}\nPPP={'padding ' * 100}\n"
        make_environment(top / "boot/environment.img", self._configuration(top), padding)
        note_start(top, "A")

    def control(self, top: Path) -> BootControl:
        """Open the backend; the configuration that it is given lies in the slot, so no power cut changes it."""
        root_of(top).mkdir(exist_ok=True)
        configure(top / "boot/environment.img", self._configuration(top))
        return UBoot(self._configuration(top), slot_paths(top), root=root_of(top), run_program=self._tools)

    def start(self, top: Path) -> str:
        """Choose and save as `boot.cmd` does; where no copy is right U-Boot takes what it was built with."""
        self.control(top)
        slot = start_with_environment(self._configuration(top), run=self._tools)
        note_start(top, slot)
        return slot

    def _configuration(self, top: Path) -> Path:
        return root_of(top) / "fw_env.config"


class RememberedTools:
    """The real tools, asked once for each thing they do to each environment.

    What they do follows from the bytes of the environment and the arguments alone. The program that is recorded
    always runs them.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[ProcessResult | ProgramFailedError, bytes]] = {}

    def __call__(
        self, argv: Sequence[str | Path], *, input_bytes: bytes = b"", timeout_s: float | None = None
    ) -> ProcessResult:
        """Run a tool, or do what it did the last time."""
        if is_recorded():
            return run(argv, input_bytes=input_bytes, timeout_s=timeout_s)
        configuration = Path(argv[argv.index("-c") + 1])
        image = Path(configuration.read_text().split()[0])
        before = image.read_bytes()
        key = (before, input_bytes, *(part for part in argv if part != configuration))
        if key not in self._known:
            done: ProcessResult | ProgramFailedError
            try:
                done = run(argv, input_bytes=input_bytes, timeout_s=timeout_s)
            except ProgramFailedError as error:
                done = error
            self._known[key] = (done, image.read_bytes())
        answer, after = self._known[key]
        if after != before:
            image.write_bytes(after)
        if isinstance(answer, ProgramFailedError):
            raise answer
        return answer


def is_recorded() -> bool:
    """Whether this is the program that does one thing under the recorder."""
    spec = sys.modules["__main__"].__spec__
    return spec is not None and spec.name == "tests.crash.acting"


def slot_paths(top: Path) -> dict[str, Path]:
    """Return the files that are the slots."""
    return {slot: top / f"slot-{slot}.img" for slot in SLOTS}


def root_of(top: Path) -> Path:
    """Return where the running kernel's files are; they are in memory, so no power cut leaves them."""
    return top.with_name(f"{top.name}.kernel")


def note_start(top: Path, slot: str) -> None:
    """Let the kernel say which slot was started, and that it was another start."""
    proc = root_of(top) / "proc"
    (proc / "sys/kernel/random").mkdir(parents=True, exist_ok=True)
    (proc / "cmdline").write_text(f"quiet overhaul.slot={slot}\n")
    (proc / "sys/kernel/random/boot_id").write_text(f"start-{next(_starts)}\n")


_ALL: tuple[Loader, ...] = (FileLoader(), GrubLoader(), SystemdBootLoader(), UBootLoader())
LOADERS: dict[str, Loader] = {loader.name: loader for loader in _ALL}
