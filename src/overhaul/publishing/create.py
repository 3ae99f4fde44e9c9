"""A new repository: configuration, keys, first signed metadata, and the root that devices begin to trust with."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from overhaul.errors import InputError
from overhaul.host.files import replace_bytes
from overhaul.publishing.opening import Repository, open_repository
from overhaul.publishing.settings import SETTINGS_FILE, first_settings
from overhaul.release.channels import Channels
from overhaul.repository.opening import StorageAddress
from overhaul.repository.signed import read_public
from overhaul.trust import roles
from overhaul.trust.keyring import KEYRING_FILE, Keyring, refuse_inside
from overhaul.trust.layout import TIMESTAMP_KEY, metadata_key

STORE_FOLDER = "store"
ROOT_FILE = "root.json"


class RepositoryThereError(InputError):
    """A repository is there already and complete."""

    http_status = 409

    def __init__(self, *, directory: Path) -> None:
        self.directory = directory
        super().__init__(f"{directory} already is a repository; publish into it, or name an empty directory.")


@dataclass(frozen=True, kw_only=True)
class CreatedRepository:
    """What a person needs to know of a new repository."""

    directory: Path
    settings: Path
    keys: Path
    #: Served to devices.
    public: str
    #: Copied onto devices: their trust begins with it.
    root: Path
    products: tuple[str, ...]
    demo_keys: bool


def create_repository(
    directory: Path,
    *,
    products: tuple[str, ...],
    keys: Path | None = None,
    storage: StorageAddress | str = STORE_FOLDER,
    public_url: str = "",
    channels: tuple[str, ...] = Channels().names,
    with_builds: bool = False,
    demo_keys: bool = False,
    clock: Callable[[], float] = time.time,
) -> CreatedRepository:
    """Make a repository in `directory`; one that a killed run left unfinished is finished.

    `with_builds` gives it the role that signs images on demand.

    Raises:
        RepositoryThereError: There is one already.
        KeysInsideRepositoryError: `keys` lies in `directory`.
    """
    for product in products:
        roles.check_product(product)
    Channels(channels)
    settings_file = directory / SETTINGS_FILE
    if not settings_file.exists():
        keys = keys if keys is not None else directory.absolute().parent / f"{directory.absolute().name}-keys"
        refuse_inside(keys, directory)
        directory.mkdir(parents=True, exist_ok=True)
        text = first_settings(
            products=dict.fromkeys(products, channels),
            storage=StorageAddress(url=storage) if isinstance(storage, str) else storage,
            keys=_seen_from(directory, keys),
            public_url=public_url,
        )
        replace_bytes(settings_file, text.encode())
    repository = replace(open_repository(directory), clock=clock)
    _sign_first(repository, with_builds=with_builds, demo_keys=demo_keys)
    # Written last: whoever finds it knows that nothing is missing.
    root = read_public(repository.storage, metadata_key(roles.ROOT, 1)) or b""
    replace_bytes(directory / ROOT_FILE, root)
    return CreatedRepository(
        directory=directory,
        settings=settings_file,
        keys=repository.keys_directory,
        public=f"{repository.storage.place}/public",
        root=directory / ROOT_FILE,
        products=tuple(repository.settings.products),
        demo_keys=repository.keyring.demo,
    )


def _sign_first(repository: Repository, *, with_builds: bool, demo_keys: bool) -> None:
    products = tuple(repository.settings.products)
    with repository.locked("init") as lock:
        if read_public(repository.storage, TIMESTAMP_KEY) is not None:
            if (repository.directory / ROOT_FILE).exists():
                raise RepositoryThereError(directory=repository.directory)
            return
        if not (repository.keys_directory / KEYRING_FILE).exists():
            Keyring.generate(
                repository.keys_directory,
                products=products,
                repository=repository.directory,
                plan=repository.settings.key_plan(),
                with_builds=with_builds,
                demo=demo_keys,
            )
        change = repository.change(lock)
        change.editor.create(products, with_builds=with_builds)
        change.commit()


def _seen_from(directory: Path, keys: Path) -> str:
    """Return `keys` relative to a neighbouring repository, so that both can be moved together."""
    inside = directory.absolute()
    if keys.absolute().parent == inside.parent:
        return f"../{keys.absolute().name}"
    return str(keys.absolute())
