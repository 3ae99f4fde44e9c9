"""The desk: the one process that holds the policy key for the dashboard and carries operators' acts out.

The server that faces the network never reads a key. It hands an act and the operator's session to the desk, over a
socket that only it may enter; the desk looks the session and the role up for itself, acts through the same functions as
the commands, under the repository's lock, and writes the audit log before it answers. What is refused is written too.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from overhaul.errors import InputError, OperatorError, OverhaulError, TrustError
from overhaul.host import exchange
from overhaul.policy.document import Policy
from overhaul.publishing import policies
from overhaul.publishing.opening import Repository
from overhaul.server.operators.accounts import Role
from overhaul.server.operators.acts import Act, ActKind, entry_words
from overhaul.server.operators.audit import AuditLog
from overhaul.server.operators.sessions import Session, Sessions

_MAX_BYTES = 64 << 10
_QUESTION_WITHIN_S = 10.0
#: Signing with a slow token and pointing the dialects of a large product is part of an answer.
_ANSWER_WITHIN_S = 300.0

_LOGGER = logging.getLogger(__name__)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An act, and who wants it."""

    act: Act
    #: The cookie of the operator's session.
    session: str
    #: Where the operator's browser is.
    address: str


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an order."""

    #: Whether the channel's policy is now as wanted.
    done: bool
    changed: bool = False
    revision: int = 0
    #: Why it was not done.
    problem: str = ""
    status: int = 200


class DeskUnreachableError(OperatorError):
    """The desk does not answer."""

    http_status = 503

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(
            f"The desk at {path} does not answer ({reason}); start `overhaul operator desk`. Whether the change was "
            "made is shown by the channel."
        )


class NotAllowedError(TrustError):
    """An order of somebody who may not give it."""

    http_status = 403


def hand_in(path: Path, order: Order) -> Done:
    """Hand `order` to the desk that listens on `path`; return what came of it.

    Raises:
        DeskUnreachableError: It does not answer, or not sensibly.
    """
    try:
        answer = exchange.ask(path, msgspec.json.encode(order), timeout_s=_ANSWER_WITHIN_S, at_most=_MAX_BYTES)
        return msgspec.json.decode(answer, type=Done)
    except (OSError, msgspec.MsgspecError, UnicodeError) as error:
        raise DeskUnreachableError(path=path, reason=str(error)) from error


class Desk:
    """Carries orders out, one at a time."""

    def __init__(
        self,
        open_repository: Callable[[], Repository],
        *,
        sessions: Sessions,
        audit: AuditLog,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._open_repository = open_repository
        self._sessions = sessions
        self._audit = audit
        self._clock = clock

    def answering(self, path: Path) -> exchange.Answering:
        """Return what answers orders on the socket `path`."""
        return exchange.Answering(path, self.answer, at_most=_MAX_BYTES, question_within_s=_QUESTION_WITHIN_S)

    def answer(self, question: bytes) -> bytes:
        """Return the answer to an order, both as JSON."""
        try:
            order = msgspec.json.decode(question, type=Order)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, InputError) as error:
            return msgspec.json.encode(Done(done=False, problem=f"This is no order: {error}.", status=400))
        return msgspec.json.encode(self.perform(order))

    def perform(self, order: Order) -> Done:
        """Do what `order` says and write it down; return what came of it."""
        act, operator, details = order.act, "", ""
        try:
            session = self._sessions.find(order.session, now=int(self._clock()))
            operator = "" if session is None else session.operator
            _check_allowed(session)
            # What cannot be written down does not happen.
            self._audit.check_writable()
            repository = self._open_repository()
            before = _policy(repository, act)
            details = entry_words(None if before is None else before.entry(act.release))
            result = _carry_out(repository, act, before)
            details += f" → {entry_words(result.entry(act.release))}, revision {result.policy.revision}"
            done = Done(done=True, changed=result.changed, revision=result.policy.revision)
        except OverhaulError as error:
            done = Done(done=False, problem=str(error), status=error.http_status)
        except Exception:
            # A bug must not end the desk, and its traceback belongs to the log of this machine.
            _LOGGER.exception("an order could not be carried out")
            done = Done(done=False, problem="The desk failed in a way that its log tells.", status=500)
        self._write_down(order, operator, details, done)
        return done

    def _write_down(self, order: Order, operator: str, details: str, done: Done) -> None:
        outcome = ("done" if done.changed else "it was so already") if done.done else done.problem
        try:
            self._audit.append(
                at=self._clock(),
                operator=operator,
                address=order.address,
                act=order.act.kind.value,
                subject=order.act.subject,
                details=details,
                result=outcome,
            )
        except OperatorError:
            # What was signed cannot be taken back; whoever reads this log must know of it all the same.
            _LOGGER.exception("%s by %s (%s) %s", order.act.subject, operator, order.address, outcome)


def _check_allowed(session: Session | None) -> None:
    if session is None:
        raise NotAllowedError("The session has ended; sign in again.")
    if session.role is not Role.OPERATOR:
        raise NotAllowedError(f"{session.operator} may look and not change; ask for the role `operator`.")


def _policy(repository: Repository, act: Act) -> Policy | None:
    held = repository.published().policies
    return next(
        (each for each in held.values() if (each.product, each.channel) == (act.product, act.channel)),
        None,
    )


def _carry_out(repository: Repository, act: Act, before: Policy | None) -> policies.PolicyChanged:
    held = None if before is None else before.entry(act.release)
    match act.kind:
        case ActKind.PROMOTE:
            return policies.promote(
                repository,
                act.release,
                source=act.source or "",
                target=act.channel,
                rollout=act.rollout_after(None),
                expected_revision=act.revision,
            )
        case ActKind.RECALL:
            return policies.recall(
                repository,
                act.release,
                channel=act.channel,
                reason=act.reason,
                allow_lower=act.allow_lower,
                expected_revision=act.revision,
            )
        case _:
            return policies.set_rollout(
                repository,
                act.release,
                channel=act.channel,
                rollout=act.rollout_after(None if held is None else held.rollout),
                expected_revision=act.revision,
            )
