"""Boot control through systemd-boot: entries of the Boot Loader Specification with counted attempts.

systemd-boot counts by itself: it renames `overhaul-B+3.conf` to `overhaul-B+2-1.conf` before it starts that entry,
and takes an entry whose attempts are used up only when there is no other. `loaderentry` says what the entries look
like, `bootfiles` how they are changed so that a power cut does no harm.

systemd-boot reads no Linux file systems, so the kernel and the initrd of a slot are copied to the boot partition:

    loader/loader.conf                must say `default overhaul-*`
    loader/entries/overhaul-*.conf    one for each slot that may boot
    overhaul/NAME/linux, initrd       out of the slot NAME

The order of the durable steps:

    mark_bad   the slot's entries become inert
    try_next   entries inert, kernel and initrd copied and read back, one entry with counter and the highest number
    mark_good  the entry without counter, with the text of the one that was tried; then the counted one goes

Kernel and initrd of a slot are only ever written while the slot has no live entry, and the entries of other slots
are never touched. What `systemd-bless-boot` leaves (no counter, or `+0`) is understood as good and bad.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path

from overhaul.host.files import require_writable, sync_directory
from overhaul.host.mounting import find_inside, looking_into
from overhaul.host.processes import ProgramFailedError
from overhaul.install.boot import BootControlError, SlotBootState, SlotStatus
from overhaul.install.bootfiles import digest_on_medium, make_durable, make_inert, write_live, write_over
from overhaul.install.countdown import MAX_ATTEMPTS, AttemptsError, UnknownSlotError
from overhaul.install.loaderentry import (
    DEFAULT_PATTERN,
    Entry,
    EntryName,
    in_loader_order,
    kernel_directory,
    parse_name,
    render_entry,
    with_version,
)
from overhaul.install.running import RunningSystem

_DEFAULT_VARIABLE = "sys/firmware/efi/efivars/LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
#: Attributes of an EFI variable come before its value.
_ATTRIBUTES_BYTES = 4


class SystemdBoot:
    """Implements `BootControl` on a mounted boot partition (the ESP or XBOOTLDR) at `boot`.

    `kernel` and `initrd` are paths inside a slot, `options` the kernel's command line with `{slot}` for the slot's
    name. `look_into` opens a slot that does not run; everything of the running system is looked up below `root`.
    """

    def __init__(
        self,
        boot: Path,
        slots: Mapping[str, Path],
        *,
        kernel: str,
        initrd: str,
        options: str,
        root: Path = Path("/"),
        look_into: Callable[[Path], AbstractContextManager[Path]] = looking_into,
    ) -> None:
        self._boot = boot
        self._entries_directory = boot / "loader/entries"
        self._slots = dict(slots)
        self._kernel = kernel
        self._initrd = initrd
        self._options = options
        self._look_into = look_into
        self._running = RunningSystem(slots, root=root)

    def booted(self) -> str:
        """Return the slot that the kernel was started from."""
        return self._running.slot()

    def boot_id(self) -> str:
        """Return the kernel's random id of this start."""
        return self._running.boot_id()

    def primary(self) -> str:
        """Return the slot that systemd-boot would choose now."""
        with self._named_errors():
            order = in_loader_order(self._entries())
        return order[0].name.slot if order else next(iter(self._slots))

    def state(self, slot: str) -> SlotBootState:
        """Return what systemd-boot would do with `slot`."""
        self._require_known(slot)
        with self._named_errors():
            order = in_loader_order(entry for entry in self._entries() if entry.name.slot == slot)
        left = order[0].name.left if order else 0
        if left is None:
            return SlotBootState(status=SlotStatus.GOOD, attempts_left=0)
        return SlotBootState(status=SlotStatus.TRIAL if left else SlotStatus.BAD, attempts_left=left)

    def require_ready(self, slot: str) -> None:
        """Refuse a boot partition that is not there, not ours, not to be written, or without room for a kernel."""
        self._require_known(slot)
        with self._named_errors():
            self._require_ours()
            self._entries()
            for place in (self._boot, self._entries_directory):
                require_writable(place)
            self._require_room(slot)

    def mark_bad(self, slot: str) -> None:
        """Make sure, durably, that `slot` is not booted."""
        self._require_known(slot)
        with self._named_errors():
            entries = self._entries()
            own = [entry for entry in entries if entry.name.slot == slot]
            # Also when there is none: a killed program may have removed it and not synced that.
            sync_directory(self._entries_directory)
            if any(entry.is_live and entry.name.slot != slot for entry in entries):
                self._make_inert(own)
                return
            # A device that starts nothing cannot be helped from afar: the last entry stays, used up.
            last = next(iter(in_loader_order(own)), None)
            if last is None:
                return
            used_up = EntryName(slot=slot, left=0)
            if last.name.left != 0:
                self._put(used_up, last.text, own)
            self._make_inert(entry for entry in own if entry.file not in {str(used_up), last.file})
            if last.name.left != 0:
                self._make_inert([last])

    def try_next(self, slot: str, *, attempts: int) -> None:
        """Boot `slot` next, at most `attempts` times until it is marked good; its kernel comes to the partition."""
        if not 1 <= attempts <= MAX_ATTEMPTS:
            raise AttemptsError(attempts=attempts)
        self._require_known(slot)
        with self._named_errors():
            self._require_ours()
            entries = self._entries()
            own = [entry for entry in entries if entry.name.slot == slot]
            has_initrd, is_copied = self._bring_kernel(slot, own)
            if is_copied:
                own = []
            text = render_entry(slot, version=_top(entries) + 1, options=self._options, has_initrd=has_initrd)
            trial = EntryName(slot=slot, left=attempts)
            first = None if is_copied else next(iter(in_loader_order(entries)), None)
            if first is not None and first.name == trial and first.text == with_version(text, first.version):
                # Told a second time, which must not take back what was told the first time.
                make_durable(self._entries_directory / first.file)
                self._make_inert(entry for entry in own if entry.file != first.file)
                return
            # The loader starts uncounted what it cannot rename, so no counted entry may stand in the way of this one.
            self._make_inert(entry for entry in own if entry.name.left is not None)
            write_live(self._entries_directory / str(trial), text)
            self._make_inert(entry for entry in own if entry.name.left is None)

    def mark_good(self, slot: str) -> None:
        """Confirm `slot`: it boots from now on."""
        self._require_known(slot)
        with self._named_errors():
            entries = self._entries()
            own = [entry for entry in entries if entry.name.slot == slot]
            tried = next(iter(in_loader_order(own)), None)
            version = _top(entries)
            if tried is None or any(
                other.is_live and other.name.slot != slot and other.version >= tried.version for other in entries
            ):
                version += 1
            if tried is None:
                has_initrd, _ = self._bring_kernel(slot, own)
                text = render_entry(slot, version=version, options=self._options, has_initrd=has_initrd)
            else:
                text = with_version(tried.text, version)
            good = EntryName(slot=slot)
            self._put(good, text, own)
            self._make_inert(entry for entry in own if entry.file != str(good))

    def _bring_kernel(self, slot: str, own: list[Entry]) -> tuple[bool, bool]:
        """Have the kernel of `slot` on the boot partition; return whether there is an initrd, and whether it copied.

        Where something must be copied, the slot's entries are made inert first.
        """
        directory = self._boot / kernel_directory(slot)
        with self._tree(slot) as tree:
            wanted = {"linux": find_inside(tree, self._kernel), "initrd": find_inside(tree, self._initrd)}
            if wanted["linux"] is None:
                raise BootControlError(
                    place=str(self._boot), reason=f"slot {slot} has no kernel {self._kernel}; name it in [boot]"
                )
            files = {name: source for name, source in wanted.items() if source is not None}
            if all(_digest(source) == digest_on_medium(directory / name) for name, source in files.items()):
                self._make_directories(directory)
                return "initrd" in files, False
            self._make_inert(own)
            self._make_directories(directory)
            if "initrd" not in files:
                (directory / "initrd").unlink(missing_ok=True)
            for name, source in files.items():
                with source.open("rb") as stream:
                    write_over(directory / name, stream)
        return "initrd" in files, True

    def _make_directories(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for place in (directory, directory.parent, self._boot):
            sync_directory(place)

    def _tree(self, slot: str) -> AbstractContextManager[Path]:
        if slot == self.booted():
            return nullcontext(self._running.root)
        return self._look_into(self._slots[slot])

    def _put(self, name: EntryName, text: bytes, own: list[Entry]) -> None:
        """Have a live entry of this name and text; one that is there already is never inert on the way if it need not.

        Texts that differ only in the number are changed in place, within one sector.
        """
        path = self._entries_directory / str(name)
        before = next((entry for entry in own if entry.file == str(name)), None)
        if before is None or not before.is_live:
            write_live(path, text)
            return
        if before.text != with_version(text, before.version):
            make_inert(path)
            write_live(path, text)
        elif before.text != text:
            write_over(path, BytesIO(text))
        else:
            make_durable(path)

    def _make_inert(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            make_inert(self._entries_directory / entry.file)

    def _entries(self) -> list[Entry]:
        directory = self._entries_directory
        found = []
        for file in sorted(os.listdir(directory)):  # noqa: PTH208 - names, not paths
            name = parse_name(file)
            if name is not None and name.slot in self._slots:
                found.append(Entry(file=file, name=name, text=(directory / file).read_bytes()))
        return found

    def _require_ours(self) -> None:
        """Refuse a set-up in which something else than the entries decides what boots."""
        if len({slot.lower() for slot in self._slots}) < len(self._slots):
            raise BootControlError(place=str(self._boot), reason="VFAT cannot tell slots apart by upper and lower case")
        configuration = self._boot / "loader/loader.conf"
        lines = [line.split(None, 1) for line in configuration.read_text(errors="replace").splitlines()]
        if [words[1].strip() for words in lines if len(words) == 2 and words[0] == "default"] != [DEFAULT_PATTERN]:
            raise BootControlError(
                place=str(configuration), reason=f"it must have one line `default {DEFAULT_PATTERN}` to fall back by"
            )
        try:
            stored = (self._running.root / _DEFAULT_VARIABLE).read_bytes()[_ATTRIBUTES_BYTES:]
        except OSError:
            # Not set, or a system whose firmware variables cannot be read.
            return
        chosen = stored.decode("utf-16-le", "replace").rstrip("\0")
        if chosen:
            raise BootControlError(
                place="the firmware",
                reason=f"LoaderEntryDefault names {chosen!r}, so no other entry would boot; clear it with "
                '`bootctl set-default ""`',
            )

    def _require_room(self, slot: str) -> None:
        """Refuse a partition on which what the running slot has would not fit for `slot`, too.

        How much the new release needs is not known before it is there; releases of one product differ little in that.
        """
        told = os.statvfs(self._boot)
        room = told.f_bavail * told.f_frsize + _bytes_in(self._boot / kernel_directory(slot))
        needed = _bytes_in(self._boot / kernel_directory(self.booted()))
        if needed > room:
            raise BootControlError(
                place=str(self._boot),
                reason=f"there is room for {room} bytes of kernel and initrd of slot {slot}, and those of the running "
                f"slot have {needed}; remove what else lies on the boot partition, or make it larger",
            )

    def _require_known(self, slot: str) -> None:
        if slot not in self._slots:
            raise UnknownSlotError(slot=slot, known=tuple(self._slots))

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BootControlError(
                place=str(self._boot),
                reason=f"{error.strerror or error} ({error.filename or 'writing'}); is the boot partition "
                "mounted there, and has it room?",
            ) from error
        except ProgramFailedError as error:
            raise BootControlError(place=str(self._boot), reason=f"the slot cannot be looked into: {error}") from error


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _bytes_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir()) if directory.is_dir() else 0


def _top(entries: list[Entry]) -> int:
    return max((entry.version for entry in entries if entry.is_live), default=0)
