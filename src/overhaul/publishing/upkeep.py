"""Keeping a repository fresh, sound and small: refresh, prune and verify as its operator runs them."""

from overhaul.progress import Progress
from overhaul.publishing.dialects import dialects_of, point_dialects, sign_answers
from overhaul.publishing.opening import Repository
from overhaul.repository.prune import PruneReport, prune
from overhaul.repository.verify import VerifyReport, verify_repository
from overhaul.trust import roles
from overhaul.trust.editor import RefreshReport


def refresh_repository(repository: Repository) -> RefreshReport:
    """Sign the timestamp again, and every role whose time is near and whose keys are here.

    A quiet repository needs this now and then, or its signatures expire and its fleet refuses it. The pointers of
    other systems' dialects are brought up to date too, because the last step of a rollout needs no new signature.
    """
    with repository.locked("repository refresh") as lock:
        change = repository.change(lock)
        report = change.editor.refresh()
        now = int(repository.clock())
        signable = {status.role for status in change.editor.status() if status.can_sign}
        shown = []
        for product in repository.settings.products:
            if product in change.editor.products:
                dialects, policies = dialects_of(repository, product), change.policies(product=product)
                shown.append((dialects, policies))
                # A host that only keeps the repository fresh lacks the key; clients that check then wait for the next.
                if roles.policy_role(product) in signable:
                    sign_answers(change.editor, dialects, product, policies, now=now)
        change.commit()
        for dialects, policies in shown:
            point_dialects(dialects, policies, now=now)
    return report


def prune_repository(repository: Repository, *, grace_days: float | None = None, dry_run: bool = False) -> PruneReport:
    """Drop what nobody needs any more; see `repository.prune` for what that is."""
    with repository.locked("repository prune") as lock:
        change = repository.change(lock)
        signable = {status.role for status in change.editor.status() if status.can_sign}
        return prune(
            change,
            now=repository.clock(),
            grace_days=repository.settings.retention.grace_days if grace_days is None else grace_days,
            can_drop=lambda product: product in signable,
            dry_run=dry_run,
        )


def verify(
    repository: Repository, *, progress: Progress, anchor: bytes | None = None, quick: bool = False
) -> VerifyReport:
    """Check everything that is published. Needs neither keys nor the lock."""
    return verify_repository(repository.storage, now=repository.now(), progress=progress, anchor=anchor, quick=quick)
