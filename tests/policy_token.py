"""A SoftHSM token with the key that signs a product's policies."""

import json
from collections.abc import Callable

from tests.tools import need

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
LABEL, PIN = "policies", "4711"


def softhsm_configuration(directory: str) -> str:
    """Return what SoftHSM reads about tokens below `directory`."""
    return f"directories.tokendir = {directory}\nobjectstore.backend = file\nlog.level = ERROR\n"


def put_policy_key_into_token(run: Callable[..., str], overhaul: Callable[..., str], *, product: str) -> None:
    """Make a key in a new token that alone signs the policies of `product` from then on.

    `run` runs a program with the library and its configuration in its environment, `overhaul` a command on the
    repository; the pin must lie beside the other keys.
    """
    pins = ["--pin", PIN, "--so-pin", PIN]
    run(need("softhsm2-util"), "--init-token", "--free", "--label", LABEL, *pins)
    login = ["--module", MODULE, "--token-label", LABEL, "--login", "--pin", PIN]
    made = ["--key-type", "EC:prime256v1", "--id", "02", "--label", LABEL]
    run(need("pkcs11-tool"), *login, "--keypairgen", *made)
    role = f"{product}-policy"
    listed = {one["role"]: one for one in json.loads(overhaul("keys", "list", "--json"))["roles"]}
    [old] = listed[role]["keyids"]
    overhaul("keys", "add", role, "--token", f"hsm:2?label={LABEL}")
    overhaul("keys", "revoke", old)
