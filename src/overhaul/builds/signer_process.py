"""The signer as a process of its own: a socket in, signatures out, the key never leaves.

One JSON document each way on a connection of a Unix socket whose directory only workers may enter: a `Claim`, then
`{"build_id": number}` with `signatures` or `error`. Both are bounded, and a client that stalls is dropped.
"""

import os
import selectors
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from overhaul.builds.signing import Claim, RefusedClaimError, Signatures, Signer
from overhaul.errors import OperatorError, OverhaulError

_MAX_BYTES = 16 << 20
#: Publishing an image, with its deltas, is part of an answer.
_TIMEOUT_S = 3600.0
_CLAIM_TIMEOUT_S = 30.0
_PIECE_BYTES = 1 << 16


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

    def __init__(self, path: Path) -> None:
        self._path = path

    def sign(self, claim: Claim) -> Signatures:
        """Return the signatures of what `claim` is about."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_TIMEOUT_S)
                connection.connect(str(self._path))
                connection.sendall(msgspec.json.encode(claim))
                connection.shutdown(socket.SHUT_WR)
                answer = msgspec.json.decode(_received(connection), type=_Answer)
        except (OSError, msgspec.MsgspecError, UnicodeError) as error:
            raise UnreachableSignerError(path=self._path, reason=str(error)) from error
        if answer.signatures is None:
            raise RefusedClaimError(build_id=answer.build_id, reason=answer.error)
        return answer.signatures


class SignerServer:
    """Answers claims on the socket `path`, one at a time."""

    def __init__(self, path: Path, signer: Signer, *, note: Callable[[str], None] = lambda _text: None) -> None:
        self._path = path
        self._signer = signer
        self._note = note
        self._stop_reader, self._stop_writer = os.pipe()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o660)
        self._listener.listen(16)

    def run(self) -> None:
        """Answer until `stop` is called."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stop_reader, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _events in selector.select()}
                if self._stop_reader in ready:
                    break
                connection, _address = self._listener.accept()
                with connection:
                    self._answer(connection)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        os.close(self._stop_reader)

    def stop(self) -> None:
        """Let `run` return; safe in a signal handler."""
        os.close(self._stop_writer)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_CLAIM_TIMEOUT_S)
        build_id = 0
        try:
            claim = msgspec.json.decode(_received(connection), type=Claim)
            build_id = claim.build_id
            answer = _Answer(build_id=build_id, signatures=self._signer.sign(claim))
            self._note(f"signed build {build_id}")
        except RefusedClaimError as error:
            answer = _Answer(build_id=build_id, error=error.reason)
            self._note(str(error))
        except (OverhaulError, msgspec.MsgspecError, UnicodeError, RecursionError, OSError) as error:
            answer = _Answer(build_id=build_id, error=str(error))
            self._note(f"build {build_id} was not signed: {error}")
        try:
            connection.sendall(msgspec.json.encode(answer))
        except OSError as error:
            self._note(f"a worker hung up: {error}")


def _received(connection: socket.socket) -> bytes:
    data = bytearray()
    while piece := connection.recv(_PIECE_BYTES):
        data += piece
        if len(data) > _MAX_BYTES:
            raise OSError(f"more than {_MAX_BYTES} bytes")
    return bytes(data)
