"""The files devices poll: the newest version of each format, and of all.

A pointer moves after everything it leads to is durable. Its signature is put there right before it: a device that
comes between the two sees a mismatch and asks again, instead of following what nobody vouched for.
"""

from pathlib import Path

from overhaul.dialects.swupd.names import first_path, latest_path, latest_version_path, parse_version, signature_path
from overhaul.dialects.swupd.published import PublishedTree
from overhaul.dialects.swupd.signing import Signer, is_made_for
from overhaul.host.files import replace_bytes, replace_together


def move_pointers(root: Path, *, format_number: int, version: int, signer: Signer | None) -> bool:
    """Let devices of a format see `version` below `root`; return whether that changed anything."""
    changed = _move(root / latest_path(format_number), version, signer)
    first = root / first_path(format_number)
    if not first.exists():
        replace_bytes(first, b"%d\n" % version)
        changed = True
    newest = max(PublishedTree(root).latest().values())
    return _move(root / latest_version_path(), newest, signer) or changed


def pointed_version(root: Path, format_number: int) -> int:
    """Return what devices of a format are shown below `root`; 0 for nothing yet."""
    pointer = root / latest_path(format_number)
    return (parse_version(pointer.read_bytes()) or 0) if pointer.is_file() else 0


def _move(pointer: Path, version: int, signer: Signer | None) -> bool:
    pointer.parent.mkdir(parents=True, exist_ok=True)
    signature = pointer.with_name(signature_path(pointer.name))
    if pointer.is_file():
        shown = pointer.read_bytes()
        is_vouched_for = signer is None or (signature.is_file() and is_made_for(shown, signature.read_bytes()))
        if parse_version(shown) == version and is_vouched_for:
            return False
    remove_leftovers(pointer.parent)
    content = b"%d\n" % version
    replace_together({pointer: content} if signer is None else {signature: signer.sign(content), pointer: content})
    return True


def remove_leftovers(directory: Path) -> None:
    """Remove temporary files that a killed builder left beside pointers; hold the tree's lock."""
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
