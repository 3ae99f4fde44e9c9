"""The signer as a process of its own: a socket in, signatures out, the key never leaves.

One JSON document each way on a connection of a Unix socket whose directory only workers may enter: a `Claim`, then
`{"build_id": number}` with `signatures` or `error`. Both are bounded, and a client that stalls is dropped.
"""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from overhaul.builds.signing import Claim, RefusedClaimError, Signatures, Signer
from overhaul.errors import OperatorError, OverhaulError
from overhaul.host import exchange

_MAX_BYTES = 16 << 20
#: Publishing an image, with its deltas, is part of an answer.
_TIMEOUT_S = 3600.0
_CLAIM_TIMEOUT_S = 30.0
#: How long a worker waits for a signer that is not there, and how often it looks: a build that took an hour must not be
#: lost to one that is just being started.
_ABSENCE_S = 60.0
_LOOK_EVERY_S = 0.5


class _Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Signatures, or why there are none."""

    build_id: int
    signatures: Signatures | None = None
    error: str = ""


class UnreachableSignerError(OperatorError):
    """The signer does not answer, or not sensibly."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The signer at {path} does not answer ({reason}); start `overhaul builds signer`.")


class SocketSigner:
    """A signer in another process."""

    def __init__(
        self, path: Path, *, absence_s: float = _ABSENCE_S, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self._path = path
        self._absence_s = absence_s
        self._wait = wait

    def sign(self, claim: Claim) -> Signatures:
        """Return the signatures of what `claim` is about; a signer that is not there is waited for.

        Raises:
            UnreachableSignerError: It did not come, or what it says is no answer.
            RefusedClaimError: It does not sign this.
        """
        until = time.monotonic() + self._absence_s
        while True:
            try:
                told = exchange.ask(self._path, msgspec.json.encode(claim), timeout_s=_TIMEOUT_S, at_most=_MAX_BYTES)
                answer = msgspec.json.decode(told, type=_Answer)
                break
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if time.monotonic() >= until:
                    raise UnreachableSignerError(path=self._path, reason=str(error)) from error
                self._wait(_LOOK_EVERY_S)
            except (OSError, msgspec.MsgspecError, UnicodeError) as error:
                raise UnreachableSignerError(path=self._path, reason=str(error)) from error
        if answer.signatures is None:
            raise RefusedClaimError(build_id=answer.build_id, reason=answer.error)
        return answer.signatures


class SignerServer:
    """Answers claims on the socket `path`, one at a time."""

    def __init__(self, path: Path, signer: Signer, *, note: Callable[[str], None] = lambda _text: None) -> None:
        self._signer = signer
        self._note = note
        self._answering = exchange.Answering(
            path, self._answer, at_most=_MAX_BYTES, question_within_s=_CLAIM_TIMEOUT_S, note=note
        )

    def run(self) -> None:
        """Answer until `stop` is called."""
        self._answering.run()

    def stop(self) -> None:
        """Let `run` return; safe in a signal handler."""
        self._answering.stop()

    def _answer(self, question: bytes) -> bytes:
        build_id = 0
        try:
            claim = msgspec.json.decode(question, type=Claim)
            build_id = claim.build_id
            answer = _Answer(build_id=build_id, signatures=self._signer.sign(claim))
            self._note(f"signed build {build_id}")
        except RefusedClaimError as error:
            answer = _Answer(build_id=build_id, error=error.reason)
            self._note(str(error))
        except (OverhaulError, msgspec.MsgspecError, UnicodeError, RecursionError, OSError) as error:
            answer = _Answer(build_id=build_id, error=str(error))
            self._note(f"build {build_id} was not signed: {error}")
        return msgspec.json.encode(answer)
