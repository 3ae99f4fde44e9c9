"""Filling a staging directory: root file systems come out of images, and what the disk would lose is said first."""

import os
import tempfile
from pathlib import Path

from overhaul.dialects.swupd.names import checked_bundle
from overhaul.dialects.swupd.storage import Storage, StoragePlaceError
from overhaul.errors import InputError
from overhaul.host.files import sync_directory
from overhaul.host.images import extract_tree, remove_tree
from overhaul.progress import Progress

#: What a root file system may carry: the attribute, a value the kernel takes for it, and what is lost without.
_ATTRIBUTES = (
    ("security.selinux", b"system_u:object_r:unlabeled_t:s0\0", "SELinux labels"),
    ("security.capability", b"\x01\x00\x00\x02" + bytes(16), "capabilities of programs"),
    ("security.ima", b"\x01" + bytes(20), "integrity measurements (IMA)"),
    ("system.posix_acl_access", bytes.fromhex("0200000001000600ffffffff02000400010000000400040"
                                              "0ffffffff10000600ffffffff20000400ffffffff"), "access control lists"),
    ("user.overhaul", b"1", "attributes of users"),
)  # fmt: skip


class StagedAlreadyError(InputError):
    """A bundle's tree that is there."""

    def __init__(self, *, place: Path) -> None:
        self.place = place
        super().__init__(f"{place} is there already; remove it, or extract into the next version.")


def preflight(directory: Path) -> list[str]:
    """Return a sentence for everything that trees would lose in `directory`; nothing is left there."""
    directory.mkdir(parents=True, exist_ok=True)
    losses = []
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".preflight-") as stream:
        for name, value, what in _ATTRIBUTES:
            try:
                os.setxattr(stream.name, name, value)
                kept = bool(os.getxattr(stream.name, name))
            except OSError as error:
                kept, reason = False, str(error.strerror)
            else:
                reason = "it came back empty"
            if not kept:
                losses.append(f"{directory} loses {what} ({name}): {reason}.")
        try:
            os.chown(stream.name, 1, 1)
            os.chmod(stream.name, 0o4700)
            kept = os.stat(stream.name).st_mode & 0o7777 == 0o4700
        except OSError:
            kept = False
        if not kept:
            losses.append(f"{directory} loses owners or set-user-id bits: run as root, on a file system that has them.")
    return losses


def extract(
    image: Path, storage: Path, *, version: int, partition: int | None, bundle: str, progress: Progress
) -> Path:
    """Unpack an image into `storage`/image/`version`/`bundle`, which appears whole or not at all; return that."""
    checked_bundle(bundle)
    staging = Storage(storage)
    place = staging.images / str(version) / bundle
    if place.exists():
        raise StagedAlreadyError(place=place)
    if storage.exists() and not storage.is_dir():
        raise StoragePlaceError(path=storage)
    place.parent.mkdir(parents=True, exist_ok=True)
    staging.web.mkdir(parents=True, exist_ok=True)
    making = place.with_name(f".{bundle}.extracting")
    remove_tree(making)
    making.mkdir()
    progress.begin(f"Unpacking {image.name}", None)
    try:
        extract_tree(image, making, partition=partition)
        making.rename(place)
        sync_directory(place.parent)
    except BaseException:
        remove_tree(making)
        raise
    finally:
        progress.end()
    return place
