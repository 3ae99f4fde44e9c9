"""Adding a product to a repository that is there: configuration, keys and delegation, in this order.

Each step is found done by a run after one that died, and devices see the product with the last. Where the keys of
targets are elsewhere, the first two are done and the third goes through a signing request (`publishing.keys`).
"""

from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from overhaul.errors import InputError
from overhaul.host.files import replace_bytes
from overhaul.publishing.keys import commit_or_explain, settle
from overhaul.publishing.opening import Repository
from overhaul.publishing.settings import SETTINGS_FILE, Settings, UnusableSettingsError, product_table, read_settings
from overhaul.release.channels import Channels
from overhaul.trust import roles
from overhaul.trust.editor import ProductExistsError


class OtherChannelsError(InputError):
    """A product that the configuration has with other channels."""

    http_status = 409

    def __init__(self, *, product: str, channels: Collection[str]) -> None:
        self.product = product
        self.channels = tuple(channels)
        super().__init__(
            f"{SETTINGS_FILE} has the product {product!r} with the channels {', '.join(channels)} already; name these, "
            "or correct the file."
        )


@dataclass(frozen=True, kw_only=True)
class AddedProduct:
    """What a person needs to know of a new product."""

    product: str
    channels: tuple[str, ...]
    #: File names of its private keys.
    key_files: tuple[str, ...]


def add_product(repository: Repository, product: str, *, channels: tuple[str, ...] | None = None) -> AddedProduct:
    """Let the repository carry `product`; one that a killed run left unfinished is finished.

    Raises:
        ReservedNameError, UnusableNameError: It cannot have this name.
        ProductExistsError: The repository carries it already.
        OfflineSignaturesError: The keys of targets are elsewhere; a signing request holds the rest.
    """
    roles.check_product(product)
    Channels(channels or Channels().names)
    with repository.locked("repository add-product") as lock:
        change = repository.change(lock)
        settle(change)
        if product in change.editor.products:
            raise ProductExistsError(product=product)
        settings = _configured(repository, product, channels)
        names = (product, roles.policy_role(product))
        change.keyring.add_roles(names, plan=settings.key_plan())
        change.editor.add_product(product)
        commit_or_explain(change)
        files = tuple(key.file for name in names for key in change.keyring.role(name).keys)
        return AddedProduct(product=product, channels=settings.products[product].channels, key_files=files)


def _configured(repository: Repository, product: str, channels: tuple[str, ...] | None) -> Settings:
    """Return the settings with the product, which is appended to the file unless it is there."""
    path = repository.directory / SETTINGS_FILE
    settings = read_settings(path)
    known = settings.products.get(product)
    if known is not None:
        if channels is not None and known.channels != channels:
            raise OtherChannelsError(product=product, channels=known.channels)
        return settings
    text = path.read_text().rstrip("\n") + "\n" + product_table(product, channels or Channels().names)
    try:
        changed = msgspec.toml.decode(text, type=Settings)
    except (ValueError, RecursionError) as error:
        reason = f"no product can be appended to it ({error}); write the table of {product!r} into it by hand"
        raise UnusableSettingsError(path=path, reason=reason) from error
    replace_bytes(path, text.encode(), mode=path.stat().st_mode & 0o777)
    return changed
