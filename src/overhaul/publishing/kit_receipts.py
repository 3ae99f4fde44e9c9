"""Receipts that come back in kits: whose they are, and whether they arrived as they were written.

The key of a kit's receipts is kept in the repository, `private/kits/ID.json`, when the kit is made.
"""

from dataclasses import dataclass

import msgspec

from overhaul.errors import InputError
from overhaul.publishing.opening import Repository
from overhaul.repository.storage import MissingObjectError, Storage
from overhaul.transfer.kit import RECEIPT_LIMIT_BYTES, RECEIPTS, Kit, KitManifest
from overhaul.transfer.receipt import ForgedReceiptError, decode_receipt, report_in

_KEYS_PREFIX = "private/kits/"


class _ReceiptKey(msgspec.Struct, frozen=True, kw_only=True):
    receipt_key: str
    made_at: int


class UnknownKitError(InputError):
    """Receipts of a kit that this repository did not make."""

    def __init__(self, *, kit_id: str) -> None:
        self.kit_id = kit_id
        super().__init__(f"The kit {kit_id} was not made by this repository; take it to the one that made it.")


def keep_receipt_key(storage: Storage, manifest: KitManifest) -> None:
    """Remember the key of a kit, so that its receipts can be checked."""
    key = _ReceiptKey(receipt_key=manifest.receipt_key, made_at=manifest.made_at)
    storage.put(f"{_KEYS_PREFIX}{manifest.kit_id}.json", msgspec.json.encode(key))


@dataclass(frozen=True, kw_only=True)
class CollectedReceipt:
    """A receipt that verifies: the JSON bytes of its report."""

    name: str
    kit_id: str
    report: bytes


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What came back in a kit."""

    receipts: tuple[CollectedReceipt, ...]
    #: Why others were left aside.
    refused: tuple[str, ...]


def collect_receipts(repository: Repository, kit: Kit) -> Collected:
    """Return the receipts that came back in `kit`; those that do not verify are named and left aside."""
    taken: list[CollectedReceipt] = []
    refused: list[str] = []
    for name in kit.names(RECEIPTS):
        try:
            taken.append(_collected(repository, kit, name))
        except (ForgedReceiptError, UnknownKitError) as error:
            refused.append(str(error))
    return Collected(receipts=tuple(taken), refused=tuple(refused))


def _collected(repository: Repository, kit: Kit, name: str) -> CollectedReceipt:
    size = kit.size(name) or 0
    if size > RECEIPT_LIMIT_BYTES:
        raise ForgedReceiptError(name=name, reason=f"it has {size} bytes, and {RECEIPT_LIMIT_BYTES} are enough")
    receipt = decode_receipt(b"".join(kit.read(name, 0, size)), name=name)
    try:
        known = msgspec.json.decode(repository.storage.read(f"{_KEYS_PREFIX}{receipt.kit_id}.json"), type=_ReceiptKey)
    except MissingObjectError as error:
        raise UnknownKitError(kit_id=receipt.kit_id) from error
    report = report_in(receipt, receipt_key=known.receipt_key, name=name)
    return CollectedReceipt(name=name, kit_id=receipt.kit_id, report=report)
