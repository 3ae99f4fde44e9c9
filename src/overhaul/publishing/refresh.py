"""Signing again what would expire, so that a quiet repository does not freeze its fleet."""

from overhaul.publishing.opening import Repository
from overhaul.trust.editor import RefreshReport


def refresh(repository: Repository) -> RefreshReport:
    """Sign the timestamp again, and every role whose time is near and whose keys are here."""
    with repository.locked("repository refresh") as lock:
        change = repository.change(lock)
        report = change.editor.refresh()
        change.commit()
    return report
