"""Reading a published tree as devices would, to find what is missing or damaged before they do."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.x509 import Certificate

from overhaul.dialects.swupd.fullfiles import DamagedFullfileError, FullfileStore
from overhaul.dialects.swupd.manifest import Entry, Manifest
from overhaul.dialects.swupd.names import MOM, latest_path, manifest_path, signature_path
from overhaul.dialects.swupd.published import DamagedTreeError, PublishedTree
from overhaul.dialects.swupd.signing import SignatureRefusedError, load_trusted, verify_detached
from overhaul.dialects.swupd.ways import Ways
from overhaul.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found in a tree."""

    #: A sentence for everything that devices of the newest versions, or on the way there, would miss or refuse.
    problems: tuple[str, ...]
    #: File deltas that were applied, and those whose old object was pruned.
    deltas: int
    untried_deltas: int


def check_tree(web: Path, *, certificate: Path | None, progress: Progress) -> Checked:
    """Read the newest version of each format, and go the ways to it, as devices do."""
    tree = PublishedTree(web)
    trusted = load_trusted(certificate.read_bytes(), name=str(certificate)) if certificate is not None else ()
    problems: list[str] = []
    wanted: dict[str, Entry] = {}
    newest: dict[tuple[str, int], Manifest] = {}
    era_hashes_paths = False
    pointers = tree.latest()
    if not pointers:
        problems.append(f"{web} has no version/format.../latest: devices see no version.")
    for number, version in sorted(pointers.items()):
        try:
            mom = tree.mom(version)
            bundles = tree.bundles(mom)
        except DamagedTreeError as error:
            problems.append(str(error))
            continue
        era_hashes_paths |= mom.format < 4
        if trusted:
            # Clients judge the time of the MoM's certificate, and not that of the pointer's.
            signed = ((manifest_path(version, MOM), datetime.now(UTC)), (latest_path(number), None))
            said = [_signature_problem(tree, path, trusted, now=now) for path, now in signed]
            problems += filter(None, said)
        newest |= {(name, manifest.version): manifest for name, manifest in bundles.items()}
        for manifest in bundles.values():
            wanted |= {entry.hash: entry for entry in manifest.entries if entry.is_present}
    store = FullfileStore(web, {})
    progress.begin("Reading full files", len(wanted), "files")
    for entry in wanted.values():
        path = entry.name if era_hashes_paths and entry.kind == "D" else None
        try:
            store.read(entry.version, entry.hash, path=path)
        except DamagedFullfileError as error:
            problems.append(str(error))
        progress.advance(1)
    progress.end()
    progress.begin("Applying packs", None)
    ways = Ways(tree, store, progress)
    for (name, _version), manifest in newest.items():
        ways.go(name, manifest)
    progress.end()
    return Checked(problems=(*problems, *ways.problems), deltas=ways.applied, untried_deltas=ways.untried)


def _signature_problem(tree: PublishedTree, path: str, trusted: Sequence[Certificate], *, now: datetime | None) -> str:
    """Return what is wrong with a signature, or nothing."""
    try:
        content, signature = tree.path(path).read_bytes(), tree.path(signature_path(path)).read_bytes()
        verify_detached(content, signature, trusted=trusted, name=path, now=now)
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}."
    except SignatureRefusedError as error:
        return str(error)
    return ""
