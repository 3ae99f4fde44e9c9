"""Publishing one image's tree to a repository without a product's configuration: what a Yocto build does.

One commit object goes into the common repository, whose history it continues, and into the image's own, from which
the disk image is deployed: a device made of that image has the very commit that is served, and finds no update
waiting. A tree that the branch holds already is not committed again, for the same reason.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from overhaul.content.tree import read_files, scan_tree
from overhaul.dialects.ostree.archive import ArchiveRepository, UnusableRepositoryError
from overhaul.dialects.ostree.commit import TreeCommitter, copy_commit, entries_of, later_than, put_commit
from overhaul.dialects.ostree.delta_make import MadeStaticDelta, delta_sources, make_static_delta
from overhaul.dialects.ostree.gvariant import Variant
from overhaul.dialects.ostree.heads import move_heads
from overhaul.dialects.ostree.layout import REMOTE_NAME, check_ref, delta_directory
from overhaul.dialects.ostree.objects import Commit
from overhaul.dialects.ostree.prepare import LAYOUTS, plan_tree
from overhaul.dialects.ostree.signatures import Signer, binary_keys
from overhaul.errors import InputError, OperatorError
from overhaul.host.files import replace_bytes
from overhaul.progress import Progress
from overhaul.transfer.wire import is_address


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is to be exported, and how."""

    tree: Path
    #: The common repository; made when it is not there.
    repository: Path
    branch: str
    #: Rebuilt with this commit alone, or None.
    image_repository: Path | None = None
    subject: str = ""
    version: str = ""
    #: How the tree is prepared, None for a tree that is prepared already.
    layout: str | None = "refkit"
    needs_kernel: bool = True
    xattrs: bool = True
    #: Parents that deltas are made from.
    delta_sources: int = 1
    delta_from_nothing: bool = False
    #: Seconds since 1970 UTC; never before that of the parent.
    timestamp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export did."""

    commit: str
    #: False when the branch held this tree already.
    is_new: bool
    new_objects: int
    new_size: int
    deltas: tuple[MadeStaticDelta, ...]


def export(request: Export, *, signers: Sequence[Signer], workers: int, progress: Progress) -> Exported:
    """Commit, make deltas, fill the image's repository, move the branch and the summary; in this order.

    A run that died is run again; what is there already is not made twice, except the commit, whose time is its own.

    Raises:
        UnpreparableTreeError, UncommittableTreeError, UnreadableTreeError: The tree cannot be published.
        SigningFailedError, UnusableRepositoryError, ClashingBranchError: A key, repository or branch cannot be used.
    """
    check_ref(request.branch)
    for signer in signers:
        # Found out now, not after the tree was read.
        signer.sign(b"may this key sign?")
    repository = ArchiveRepository.create(_made(request.repository))
    repository.check_branch(request.branch)
    entries = scan_tree(request.tree)
    planned = entries_of(entries)
    if request.layout is not None:
        places = LAYOUTS[request.layout]
        planned = list(plan_tree(request.tree, entries, places=places, needs_kernel=request.needs_kernel).entries)
    if not request.xattrs:
        planned = [replace(entry, xattrs=()) for entry in planned]
    with repository.writing():
        parent = repository.resolve(request.branch)
        held = None if parent is None else repository.commit(parent)
        with repository.batch() as batch:
            committer = TreeCommitter(repository, batch, planned)
            files = [entry for entry in entries if committer.wants(entry)]
            read_files(request.tree, files, [committer.take], workers=workers, progress=progress)
            with repository.adding():
                root = committer.finish()
                if held is not None and (held.root_tree, held.root_meta) == (root.tree, root.meta):
                    commit = parent or b""
                else:
                    described = _describe(request, held, parent, root.tree, root.meta)
                    commit = put_commit(batch, described, signers=signers)
                batch.store()
        deltas = _make_deltas(request, repository, commit, workers=workers, progress=progress)
        if request.image_repository is not None:
            _rebuild_image(request, repository, commit, signers)
        move_heads(repository, {request.branch: commit}, signers=signers, now=request.timestamp)
    return Exported(
        commit=commit.hex(),
        is_new=commit != parent,
        new_objects=committer.new_objects,
        new_size=committer.new_size,
        deltas=tuple(deltas),
    )


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UnusableRepositoryError(path=directory, reason="it is a file") from error
    return directory


def _describe(request: Export, held: Commit | None, parent: bytes | None, tree: bytes, meta: bytes) -> Commit:
    metadata = {"ostree.ref-binding": Variant("as", (request.branch,))}
    if request.version:
        metadata = {"version": Variant("s", request.version), **metadata}
    return Commit(
        timestamp=later_than(held, request.timestamp),
        root_tree=tree,
        root_meta=meta,
        subject=request.subject,
        parent=parent,
        metadata=metadata,
    )


def _make_deltas(
    request: Export, repository: ArchiveRepository, commit: bytes, *, workers: int, progress: Progress
) -> list[MadeStaticDelta]:
    sources = delta_sources(repository, commit, count=request.delta_sources, from_nothing=request.delta_from_nothing)
    made = []
    with repository.adding():
        for source in sources:
            if not (repository.path / delta_directory(source, commit) / "superblock").exists():
                made.append(make_static_delta(repository, source, commit, workers=workers, progress=progress))
    return made


def _rebuild_image(request: Export, common: ArchiveRepository, commit: bytes, signers: Sequence[Signer]) -> None:
    place = request.image_repository
    assert place is not None  # noqa: S101
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    image = ArchiveRepository.create(temporary)
    copy_commit(common, image, commit)
    move_heads(image, {request.branch: commit}, signers=signers, now=request.timestamp)
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)


_NEXT_STEP = "name the one of the device's tree, SYSROOT/ostree/repo"


class BadRemoteError(InputError):
    """A remote that no client could use."""

    def __init__(self, *, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"The remote {name!r} was not written: {reason}.")


class RemoteClashError(OperatorError):
    """A remote that leads elsewhere already."""

    def __init__(self, *, repository: Path, name: str) -> None:
        self.repository = repository
        self.name = name
        super().__init__(
            f"{repository} has a remote {name} with another URL; take it out with `ostree remote delete {name}`, or "
            "give this one another --name."
        )


def add_remote(repository: Path, *, name: str, url: str, keys: bytes) -> None:
    """Let a device's repository know a remote and the OpenPGP keys whose signatures it takes.

    Raises:
        BadRemoteError: The name or the URL is none.
        UnusableRepositoryError: It is no repository.
        RemoteClashError: It has a remote of that name with another URL.
    """
    if not REMOTE_NAME.fullmatch(name):
        raise BadRemoteError(name=name, reason="write its name in letters, digits, '.', '_' and '-'")
    if not is_address(url) and not re.fullmatch(r"file:///\S+", url):
        raise BadRemoteError(name=name, reason=f"{url!r} is no https, http or file address")
    path = repository / "config"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UnusableRepositoryError(path=repository, reason="it has no config", next_step=_NEXT_STEP) from error
    section = f'[remote "{name}"]'
    if section in text and f"url={url}\n" not in text:
        raise RemoteClashError(repository=repository, name=name)
    replace_bytes(repository / f"{name}.trustedkeys.gpg", binary_keys(keys))
    if section not in text:
        replace_bytes(path, f"{text.rstrip()}\n\n{section}\nurl={url}\ngpg-verify=true\n".encode())
