"""The drill as an operator runs it: what stolen keys of this repository are worth, and thefts rehearsed on its twin."""

from dataclasses import dataclass
from math import comb

from overhaul.progress import Progress
from overhaul.publishing.opening import Repository
from overhaul.repository.signed import read_public
from overhaul.trust import roles
from overhaul.trust.drill import Rehearsal, Shape, power_of, rehearse, shape_of, thefts
from overhaul.trust.editor import MetadataEditor, UnknownProductError
from overhaul.trust.keyring import Keyring

#: What the keys for images made on demand are worth, alone and with the online ones.
_IMAGES_ON_DEMAND = ("nothing", "foreign_image_on_demand")


@dataclass(frozen=True, kw_only=True)
class RoleRadius:
    """What the keys of a role are worth to a thief."""

    role: str
    keys: int
    threshold: int
    #: How many of its private keys are in this keyring.
    held: int
    #: Sets of its keys that are too small to sign, the empty one among them, and those that are not.
    harmless_sets: int
    signing_sets: int
    #: What devices believe of who can sign it, alone and together with the online roles.
    alone: str
    with_online: str
    #: The role that must sign its new keys, and whether it can here.
    recovered_by: str
    can_recover_here: bool
    #: Roles that count some of the same keys: they are stolen together.
    shared_with: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DrillReport:
    """The blast radius of every role, and the thefts that were rehearsed."""

    roles: tuple[RoleRadius, ...]
    rehearsals: tuple[Rehearsal, ...]

    @property
    def is_sound(self) -> bool:
        """Whether every theft gave what it should, and every recovery worked."""
        return all(one.is_sound for one in self.rehearsals)


def drill(repository: Repository, *, product: str | None = None, progress: Progress) -> DrillReport:
    """Tell what stolen keys are worth, and rehearse thefts and recoveries on a twin of the repository.

    Nothing of the repository is written, and none of its keys signs anything.
    """
    editor = MetadataEditor(lambda path: read_public(repository.storage, path), repository.keyring, repository.now())
    if product is not None and product not in editor.products:
        raise UnknownProductError(product=product, known=editor.products)
    shape = shape_of(editor)
    tries = [
        (name, theft) for name in ([product] if product else shape.products) for theft in thefts(shape.owners, name)
    ]
    found = []
    progress.begin("rehearse", len(tries), unit="thefts")
    for name, theft in tries:
        found.append(rehearse(shape, theft, product=name, now=repository.now()))
        progress.advance(1)
    progress.end()
    return DrillReport(roles=_radii(repository.keyring, shape), rehearsals=tuple(found))


def signing_sets(*, keys: int, threshold: int) -> int:
    """Return how many sets of so many keys reach the threshold."""
    return sum(comb(keys, size) for size in range(threshold, keys + 1))


def _radii(keyring: Keyring, shape: Shape) -> tuple[RoleRadius, ...]:
    owners = shape.owners
    online = {role: owners[role].threshold for role in (roles.SNAPSHOT, roles.TIMESTAMP)}
    held = {role: len(keyring.held(owner.keyids)) for role, owner in owners.items()}
    found = []
    for role, owner in owners.items():
        product = next((one for one in shape.products if role in {one, roles.policy_role(one)}), shape.products[0])
        signing = signing_sets(keys=len(owner.keyids), threshold=owner.threshold)
        above = roles.ROOT if role in roles.TOP_LEVEL else roles.TARGETS
        own = {role: owner.threshold}
        others = (name for name in owners if name != role and set(owners[name].keyids) & set(owner.keyids))
        found.append(
            RoleRadius(
                role=role,
                keys=len(owner.keyids),
                threshold=owner.threshold,
                held=held[role],
                harmless_sets=2 ** len(owner.keyids) - signing,
                signing_sets=signing,
                alone=_IMAGES_ON_DEMAND[0] if role == roles.BUILDS else power_of(own, owners, product).name.lower(),
                with_online=_IMAGES_ON_DEMAND[1]
                if role == roles.BUILDS
                else power_of({**online, **own}, owners, product).name.lower(),
                recovered_by=above,
                can_recover_here=held[above] >= owners[above].threshold,
                shared_with=tuple(others),
            )
        )
    return tuple(found)
