"""A receipt: the report of an installation that had no network, on its way home in a kit.

    {"kit_id": "...", "report": "{...}", "mac": "..."}

`report` is the JSON text that a device with a network posts to the server; `mac` is the HMAC-SHA256 of its UTF-8
bytes under the receipt key, which the exporter made for this kit and put into it. So a receipt that verifies belongs
to a kit of ours and arrived as it was written. It does not prove which device wrote it, and whoever had the kit in
hand could write one: like the reports that come over the network, receipts inform people and decide nothing.
"""

import hashlib
import hmac

import msgspec

from overhaul.errors import TrustError
from overhaul.release.names import Sha256, Text, Token


class ForgedReceiptError(TrustError):
    """A receipt that is damaged, or that no device wrote which had the kit."""

    def __init__(self, *, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"The receipt {name} was left aside: {reason}.")


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt as it lies in a kit."""

    kit_id: Token
    report: Text
    mac: Sha256


def encode_receipt(report: bytes, *, kit_id: str, receipt_key: str) -> bytes:
    """Return the bytes of the receipt that carries `report`, the JSON bytes of a report."""
    receipt = Receipt(kit_id=kit_id, report=report.decode(), mac=_mac(report, receipt_key))
    return msgspec.json.encode(receipt) + b"\n"


def decode_receipt(data: bytes, *, name: str) -> Receipt:
    """Return the receipt in `data`, whose MAC is still to be checked; raise `ForgedReceiptError` when it is none."""
    try:
        return msgspec.json.decode(data, type=Receipt)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ForgedReceiptError(name=name, reason=f"it cannot be read ({error})") from error


def report_in(receipt: Receipt, *, receipt_key: str, name: str) -> bytes:
    """Return the JSON bytes of the report; raise `ForgedReceiptError` when the MAC is not that of `receipt_key`."""
    report = receipt.report.encode("utf-8", "surrogatepass")
    if not hmac.compare_digest(_mac(report, receipt_key), receipt.mac):
        raise ForgedReceiptError(name=name, reason="its MAC is not that of the kit's key")
    return report


def _mac(report: bytes, receipt_key: str) -> str:
    return hmac.new(receipt_key.encode(), report, hashlib.sha256).hexdigest()
