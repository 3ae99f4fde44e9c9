"""Waiting for a connection that does not cost money by the byte, where the owner of the device wants that."""

from overhaul.agent.ports import Device
from overhaul.policy.document import PolicyEntry


def reason_to_wait(device: Device, entry: PolicyEntry, *, download_bytes: int | None = None) -> str:
    """Return why an update must wait for another connection; empty when it need not.

    `download_bytes` is None as long as nobody knows; what costs nothing to wait for is then left for later.
    """
    settings = device.settings.repository
    limit = settings.metered_max_bytes
    if settings.metered == "allow" or entry.urgent or (limit if download_bytes is None else download_bytes <= limit):
        return ""
    if not device.is_metered():
        return ""
    much = "nothing" if limit == 0 else f"at most {limit} bytes, and {entry.name} takes {download_bytes}"
    return (
        f"The connection is metered, and over such a one this device fetches {much}; {entry.name} is fetched over the "
        "next that is not."
    )
