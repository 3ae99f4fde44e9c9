"""Looking after rollouts: what devices reported decides whether each goes on, waits, or is halted.

One pass reads the signed policies, asks for the evidence of every release under way, and lets `policy.steering` say
what becomes of it; the changes of a channel are then signed at once with the policy key. Reports come from anybody,
so all they can do here is to keep a release from devices; they never bring one to a device that the operator's plan
would not have brought it to.

A pass keeps nothing. Killed anywhere, or run twice at once, it leaves what a single one would have left.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from overhaul.policy import edit as edits
from overhaul.policy.document import Policy, PolicyEntry, Recall, encode_policy, policy_target_path
from overhaul.policy.health import Evidence
from overhaul.policy.rollout import Rollout
from overhaul.policy.steering import Change, Halt, RolloutPlan, Step, Wait, is_steered, judged_from, steer
from overhaul.publishing.dialects import dialects_of, point_dialects, sign_answers
from overhaul.publishing.opening import Repository
from overhaul.publishing.policies import check_can_sign
from overhaul.release.record import ReleaseId


@dataclass(frozen=True, kw_only=True)
class Question:
    """Of which updates the evidence is wanted."""

    release: ReleaseId
    channel: str
    #: Updates begun earlier do not count; seconds since 1970 UTC.
    since: int
    now: int
    restart_grace_s: int
    silence_grace_s: int


AskForEvidence = Callable[[Question], Evidence]


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one release under way."""

    release: ReleaseId
    channel: str
    percent: float
    evidence: Evidence
    step: Step
    #: Whether the step was signed by this pass.
    signed: bool = False

    @property
    def is_halted(self) -> bool:
        """Whether the rollout is halted, by this pass or before."""
        return isinstance(self.step, Halt) or (isinstance(self.step, Wait) and self.step.halted)


def evaluate_rollouts(repository: Repository, ask: AskForEvidence) -> tuple[Looked, ...]:
    """Return what a pass would do now; needs no private key and changes nothing."""
    now = int(repository.clock())
    plans = _plans(repository)
    policies = sorted(repository.published().policies.values(), key=lambda policy: (policy.product, policy.channel))
    return tuple(
        looked
        for policy in policies
        if policy.product in plans
        for looked in _looked_at(policy, plans[policy.product], ask, now=now)
    )


def steer_rollouts(repository: Repository, ask: AskForEvidence) -> tuple[Looked, ...]:
    """Make one pass over every product with a rollout plan, and sign what changes.

    Raises:
        MissingKeyError: The policy key is not here; nothing was changed, not even in other products.
        RepositoryBusyError: Somebody else changes the repository; try again later.
    """
    seen = evaluate_rollouts(repository, ask)
    if all(isinstance(looked.step, Wait) for looked in seen):
        # The usual pass: it takes no lock from a publisher.
        return seen
    done: list[Looked] = []
    with repository.locked("policy watch") as lock:
        change = repository.change(lock)
        now = int(repository.clock())
        plans = _plans(repository)
        for product in plans:
            check_can_sign(change, product=product, releases=False)
        shown = []
        for product, plan in plans.items():
            dialects = dialects_of(repository, product)
            for policy in change.policies(product=product):
                found = list(_looked_at(policy, plan, ask, now=now))
                after = _signed(policy, found, now=now)
                if after != policy:
                    change.editor.put_target(policy_target_path(product, policy.channel), encode_policy(after))
                done += [msgspec.structs.replace(one, signed=not isinstance(one.step, Wait)) for one in found]
            policies = change.policies(product=product)
            sign_answers(change.editor, dialects, product, policies, now=now)
            shown.append((dialects, policies))
        change.commit()
        for dialects, policies in shown:
            point_dialects(dialects, policies, now=now)
    return tuple(done)


def _plans(repository: Repository) -> dict[str, RolloutPlan]:
    products = repository.settings.products
    return {name: product.rollout for name, product in products.items() if product.rollout is not None}


def _looked_at(policy: Policy, plan: RolloutPlan, ask: AskForEvidence, *, now: int) -> Iterator[Looked]:
    for entry, rollout in _under_way(policy):
        release = entry.release_id(policy.product)
        evidence = ask(
            Question(
                release=release,
                channel=policy.channel,
                since=judged_from(rollout, set_at=policy.signed_at),
                now=now,
                restart_grace_s=round(plan.restart_grace_hours * 3600),
                silence_grace_s=round(plan.silence_grace_hours * 3600),
            )
        )
        yield Looked(
            release=release,
            channel=policy.channel,
            percent=rollout.percent_at(now),
            evidence=evidence,
            step=steer(entry, rollout, plan, evidence, now=now, set_at=policy.signed_at),
        )


def _under_way(policy: Policy) -> Iterator[tuple[PolicyEntry, Rollout]]:
    for entry in policy.entries:
        if entry.rollout is not None and is_steered(entry):
            yield entry, entry.rollout


def _signed(policy: Policy, found: Sequence[Looked], *, now: int) -> Policy:
    for one in found:
        match one.step:
            case Halt() as halt:
                policy = edits.set_rollout(policy, one.release, halt.rollout, now=now)
                if halt.recalls:
                    policy = edits.recall(policy, one.release, Recall(reason=halt.rollout.halted, since=now), now=now)
            case Change(rollout=rollout):
                policy = edits.set_rollout(policy, one.release, rollout, now=now)
            case Wait():
                pass
    return policy
