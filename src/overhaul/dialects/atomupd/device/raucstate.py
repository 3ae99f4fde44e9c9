"""What the RAUC service says about itself when it is asked over D-Bus."""

from overhaul.host.dbus import BusCallError, call_system_bus

RAUC = "de.pengutronix.rauc"
INSTALLER = "de.pengutronix.rauc.Installer"
PROPERTIES = "org.freedesktop.DBus.Properties"


def booted_slot_device(*, address: str | None = None) -> str:
    """Return the device of the slot that RAUC says is running.

    Raises:
        BusCallError: RAUC does not answer, or knows of no running slot.
    """
    [slots] = call_system_bus(destination=RAUC, path="/", interface=INSTALLER, member="GetSlotStatus", address=address)
    for _name, status in slots:
        values = {key: value.value for key, value in status.items()}
        if values.get("state") == "booted":
            return str(values.get("device"))
    raise BusCallError(destination=RAUC, member="GetSlotStatus", reason="it names no slot as booted")


def last_error(*, address: str | None = None) -> str:
    """Return why the last installation failed; empty where RAUC does not say it."""
    try:
        [value] = call_system_bus(
            destination=RAUC,
            path="/",
            interface=PROPERTIES,
            member="Get",
            signature="ss",
            body=(INSTALLER, "LastError"),
            address=address,
        )
    except BusCallError:
        return ""
    return str(value.value)
