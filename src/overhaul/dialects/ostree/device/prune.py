"""Removing objects that no ref leads to: what old deployments leave behind."""

import os

from overhaul.dialects.ostree.device.barerepo import BareRepository, object_key
from overhaul.dialects.ostree.objects import ObjectName, ObjectType


def prune(repository: BareRepository) -> int:
    """Remove every object that is not of the commit some ref names; return how many.

    Nothing is removed while a commit that a ref names cannot be read whole: then it is not known what is needed.

    Raises:
        MissingOstreeObjectError: A commit that is needed is not whole.
        RepositoryBusyError: Somebody else uses the repository for too long.
    """
    with repository.locked(shared=False):
        kept: set[str] = set()
        for _path, commit in repository.refs():
            _mark(repository, commit, kept)
        removed = 0
        for key in repository.present() - kept:
            # Other programs' kinds of objects are not ours to judge.
            if key.rpartition(".")[2] in {"file", "dirtree", "dirmeta", "commit", "commitmeta"}:
                os.unlink(repository.objects / key[:2] / key[2:])
                removed += 1
        return removed


def _mark(repository: BareRepository, commit: str, kept: set[str]) -> None:
    checksum = bytes.fromhex(commit)
    key = object_key(ObjectName(ObjectType.COMMIT, checksum))
    if key in kept:
        return
    kept |= {key, object_key(ObjectName(ObjectType.COMMITMETA, checksum))}
    if not repository.has(ObjectName(ObjectType.COMMIT, checksum)) or repository.is_partial(commit):
        return
    content = repository.commit(commit)
    waiting = [(content.root_tree, content.root_meta)]
    while waiting:
        tree, meta = waiting.pop()
        kept.add(object_key(ObjectName(ObjectType.DIRMETA, meta)))
        tree_key = object_key(ObjectName(ObjectType.DIRTREE, tree))
        if tree_key in kept:
            continue
        kept.add(tree_key)
        listed = repository.dirtree(tree)
        kept.update(object_key(ObjectName(ObjectType.FILE, file.checksum)) for file in listed.files)
        waiting += [(entry.tree, entry.meta) for entry in listed.directories]
