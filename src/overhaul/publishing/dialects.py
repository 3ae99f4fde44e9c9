"""The dialects of a product as a publish drives them: written before anything can be seen, pointed at last.

Which dialects a product speaks stands in its table of the configuration. All of them take one tree, whose files
are read once (`content.tree`). Their pointers follow from the signed policies alone: they show what a channel opens
to every device, so `point_dialects` may run at any time and twice; it runs after every change of a policy, after a
publish, and with every refresh, which is also when the last step of a rollout takes effect by itself.

Clients that can check signatures need not take pointers on trust: what they will show is signed with the policies, as
one target for each dialect (`sign_answers`), before any of them moves.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import groupby, takewhile
from pathlib import Path
from typing import TypedDict

from overhaul.content.tree import read_files, scan_tree
from overhaul.dialects.seam import Dialect, DialectSource, Opened, SignedDialect
from overhaul.errors import OperatorError
from overhaul.policy.document import Policy, PolicyEntry
from overhaul.progress import Progress
from overhaul.publishing.opening import Repository
from overhaul.publishing.source import SourceImage, tree_of
from overhaul.release.record import ReleaseId
from overhaul.repository.layout import PUBLIC
from overhaul.repository.local import LocalStorage
from overhaul.trust import roles
from overhaul.trust.editor import MetadataEditor


class DialectNeedsDirectoryError(OperatorError):
    """A dialect whose tree is written by other programs too, on a storage that is no directory."""

    def __init__(self, *, dialect: str, product: str) -> None:
        self.dialect = dialect
        self.product = product
        super().__init__(
            f"The {dialect} dialect of {product} needs a repository in a local directory; move the repository there "
            f"or take [products.{product}.{dialect}] out of the configuration."
        )


def dialects_of(repository: Repository, product: str) -> tuple[Dialect, ...]:
    """Return the dialects that the configuration of `product` asks for, in the order in which their pointers move.

    Each is loaded only when a product asks for it: a publisher of images alone needs none of their programs.

    Raises:
        DialectNeedsDirectoryError: One of them cannot live in this repository's storage.
    """
    settings = repository.settings.product(product)
    found: list[Dialect] = []
    if settings.swupd is not None:
        from overhaul.dialects.swupd.publish import SwupdDialect

        found.append(SwupdDialect(settings.swupd, **_places(repository, product, "swupd")))
    if settings.ostree is not None:
        from overhaul.dialects.ostree.publish import OstreeDialect

        found.append(OstreeDialect(settings.ostree, **_places(repository, product, "ostree")))
    if settings.atomupd is not None:
        from overhaul.dialects.atomupd.publish import AtomupdDialect

        found.append(AtomupdDialect(settings.atomupd, **_places(repository, product, "atomupd")))
    return tuple(found)


class _Places(TypedDict):
    product: str
    directory: Path
    base: Path
    clock: Callable[[], float]


def _places(repository: Repository, product: str, dialect: str) -> _Places:
    if not isinstance(repository.storage, LocalStorage):
        raise DialectNeedsDirectoryError(dialect=dialect, product=product)
    return {
        "product": product,
        "directory": repository.storage.root / PUBLIC / dialect / product,
        "base": repository.directory,
        "clock": repository.clock,
    }


def write_dialects(
    dialects: Sequence[Dialect],
    release: ReleaseId,
    image: SourceImage,
    *,
    timestamp: int,
    work: Path,
    workers: int,
    progress: Progress,
) -> tuple[str, ...]:
    """Store the release in each of `dialects`, under names nothing points to; return those that had to be written."""
    with ExitStack() as opened:
        tree = None
        if any(dialect.needs_tree for dialect in dialects):
            tree = opened.enter_context(tree_of(image, work=work))
        source = DialectSource(
            release=release,
            image=image.path,
            tree=tree,
            entries=() if tree is None else scan_tree(tree),
            timestamp=timestamp,
        )
        writers = {}
        for dialect in dialects:
            room = work / dialect.name
            room.mkdir()
            writer = dialect.writer(source, work=room, workers=workers, progress=progress)
            if writer is not None:
                writers[dialect.name] = writer
        takers = [writers[dialect.name].take for dialect in dialects if dialect.needs_tree and dialect.name in writers]
        if tree is not None and takers:
            read_files(tree, source.entries, takers, workers=workers, progress=progress)
        for writer in writers.values():
            writer.write()
    return tuple(writers)


def point_dialects(dialects: Iterable[Dialect], policies: Sequence[Policy], *, now: int) -> tuple[str, ...]:
    """Make the pointers of each of `dialects` show what `policies` open to all; return those that changed."""
    opened = opened_to_all(policies, now=now)
    recalled = recalled_by(policies)
    return tuple(dialect.name for dialect in dialects if dialect.point(opened, recalled=recalled))


def sign_answers(
    editor: MetadataEditor, dialects: Iterable[Dialect], product: str, policies: Sequence[Policy], *, now: int
) -> None:
    """Put what the pointers of `dialects` are to show under the signature of the policies' role.

    A role that was made before it was given such paths signs nothing: no device would find it.
    """
    opened = opened_to_all(policies, now=now)
    recalled = recalled_by(policies)
    for dialect in dialects:
        path = roles.answers_path(product, dialect.name)
        if isinstance(dialect, SignedDialect) and editor.covers(path):
            answers = dialect.answers(opened, recalled=recalled)
            if answers is not None:
                editor.put_target(path, answers)


def opened_to_all(policies: Iterable[Policy], *, now: int) -> tuple[Opened, ...]:
    """Return what each channel opens to every device, whatever it is and wherever it comes from, at `now`.

    Nothing above a checkpoint that is not open itself is: these devices would jump over it.
    """
    found = []
    for policy in sorted(policies, key=lambda policy: policy.channel):
        ordered = sorted(policy.entries, key=lambda entry: (entry.variant, entry.arch, entry.order))
        for (variant, arch), group in groupby(ordered, key=lambda entry: (entry.variant, entry.arch)):
            reachable = takewhile(lambda entry: not entry.checkpoint or _is_open_to_all(entry, now=now), group)
            entries = [entry for entry in reachable if _is_open_to_all(entry, now=now)]
            found.append(
                Opened(
                    channel=policy.channel,
                    variant=variant,
                    arch=arch,
                    releases=tuple(entry.release_id(policy.product) for entry in entries),
                    checkpoints=tuple(entry.release_id(policy.product) for entry in entries if entry.checkpoint),
                )
            )
    return tuple(found)


def recalled_by(policies: Iterable[Policy]) -> dict[ReleaseId, str]:
    """Return the releases that a channel recalls, and why."""
    return {
        entry.release_id(policy.product): entry.recall.reason
        for policy in policies
        for entry in policy.entries
        if entry.recall is not None
    }


def _is_open_to_all(entry: PolicyEntry, *, now: int) -> bool:
    # What depends on the device cannot be said to one that reads no policy.
    if entry.recall is not None or entry.hardware is not None or entry.requires is not None:
        return False
    return entry.rollout is None or entry.rollout.percent_at(now) >= 100
