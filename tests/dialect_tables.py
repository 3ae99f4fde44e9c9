"""The configuration of a product that speaks every dialect, with keys of its own."""

from pathlib import Path

from tests.atomupd_devices import make_signer
from tests.swupd_keys import self_signed

_TABLES = """
[products.kiosk.swupd]
key = "{swupd_key}"
certificate = "{swupd_certificate}"

[products.kiosk.ostree]
layout = "none"
needs_kernel = false
unsigned = true

[products.kiosk.atomupd]
release = "holo"
compatible = "kiosk"
key = "{rauc_key}"
certificate = "{rauc_certificate}"
"""


def dialect_tables(directory: Path) -> str:
    """Return what to add to `overhaul.toml` for the product `kiosk`; the keys are made in `directory`."""
    swupd, rauc = self_signed(directory), make_signer(directory)
    return _TABLES.format(
        swupd_key=swupd.key, swupd_certificate=swupd.certificate, rauc_key=rauc.key, rauc_certificate=rauc.certificate
    )
