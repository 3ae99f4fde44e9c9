"""The audit log: who did what, when, from where, and how it ended; lines are only ever added.

    AUDIT.jsonl      one JSON object a line: number, at, operator, address, act, subject, details, result, previous

`previous` is the SHA-256 of the whole line before, so a line that is changed, removed or put in between does not fit
its neighbours any more (`verify`). Lines cut off at the end leave a chain that fits: whoever wants to notice that keeps
the digest of the last line elsewhere and asks whether it is still there. `chattr +a` makes the file append-only for
everybody but root. A line that a power cut tore stays and is chained like any other.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from overhaul.errors import OperatorError, TrustError
from overhaul.host.rights import create_as_directory_says

_FIRST = "0" * 64
#: No line is longer: what is written is bounded, and readers look this far back.
_MAX_LINE_BYTES = 16 << 10
_BLOCK_BYTES = 256 << 10


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line."""

    number: Annotated[int, msgspec.Meta(ge=1)]
    #: Seconds since 1970 UTC.
    at: int
    #: Empty for somebody who is not known.
    operator: str
    #: Network address, or `local` for commands on the server's machine.
    address: str
    act: str
    subject: str
    #: What changed from what to what, in words.
    details: str
    #: `done`, or the sentence why it was not.
    result: str
    previous: str


class DamagedAuditError(TrustError):
    """The audit log was changed after it was written."""

    def __init__(self, *, path: Path, line: int, reason: str) -> None:
        self.path = path
        self.line = line
        self.reason = reason
        super().__init__(
            f"The audit log {path} was tampered with or damaged at line {line}: {reason}; compare it with a copy."
        )


class UnwritableAuditError(OperatorError):
    """The audit log cannot be written, so nothing that belongs into it may happen."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The audit log {path} cannot be written ({reason}); check its rights and free space.")


class AuditLog:
    """The audit log in the file `path`; every method blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(
        self,
        *,
        at: float,
        operator: str,
        address: str,
        act: str,
        subject: str = "",
        details: str = "",
        result: str = "done",
    ) -> AuditRecord:
        """Add a line and make it durable.

        Raises:
            UnwritableAuditError: It cannot be written.
        """
        try:
            with self._locked() as descriptor:
                last = self._last_line(descriptor)
                record = AuditRecord(
                    number=_count_lines(descriptor) + 1,
                    at=int(at),
                    operator=operator[:64],
                    address=address[:64],
                    act=act[:64],
                    subject=subject[:400],
                    details=details[:1000],
                    result=result[:1000],
                    previous=_FIRST if last is None else hashlib.sha256(last).hexdigest(),
                )
                line = msgspec.json.encode(record) + b"\n"
                # A torn line has no end; its bytes are what was hashed.
                torn = last is not None and os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1) != b"\n"
                data = b"\n" + line if torn else line
                if os.write(descriptor, data) != len(data):
                    raise UnwritableAuditError(path=self.path, reason="only a part of the line fits")
                os.fsync(descriptor)
        except OSError as error:
            raise UnwritableAuditError(path=self.path, reason=error.strerror or str(error)) from error
        return record

    def check_writable(self) -> None:
        """Raise `UnwritableAuditError` when the log cannot be opened for writing."""
        try:
            with self._locked():
                pass
        except OSError as error:
            raise UnwritableAuditError(path=self.path, reason=error.strerror or str(error)) from error

    def recent(self, *, limit: int) -> tuple[AuditRecord, ...]:
        """Return the newest records, the newest first; lines that are none are left out."""
        found: list[AuditRecord] = []
        for line in self._lines_backwards():
            if (record := _parse(line)) is not None:
                found.append(record)
            if len(found) == limit:
                break
        return tuple(found)

    def verify(self, *, holds: str | None = None) -> tuple[int, str]:
        """Return the number of lines and the digest of the last; `holds` is a digest that one of them must have.

        Raises:
            DamagedAuditError: A line does not fit the one before it, or none has the digest `holds`.
        """
        previous, number, seen = _FIRST, 0, False
        if self.path.exists():
            with self.path.open("rb") as stream:
                for number, raw in enumerate(stream, start=1):
                    line = raw.removesuffix(b"\n")
                    record = _parse(line)
                    if record is not None and record.previous != previous:
                        raise DamagedAuditError(
                            path=self.path, line=number, reason="it does not follow from the line before"
                        )
                    if record is not None and record.number != number:
                        raise DamagedAuditError(path=self.path, line=number, reason=f"it says it is {record.number}")
                    previous = hashlib.sha256(line).hexdigest()
                    seen = seen or previous == holds
                    if record is None and not _may_be_torn(line):
                        raise DamagedAuditError(path=self.path, line=number, reason="it is no record")
        if holds is not None and not seen:
            raise DamagedAuditError(path=self.path, line=number, reason=f"no line has the digest {holds}")
        return number, previous

    @contextmanager
    def _locked(self) -> Iterator[int]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        create_as_directory_says(self.path)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _last_line(self, descriptor: int) -> bytes | None:
        size = os.fstat(descriptor).st_size
        if size == 0:
            return None
        start = max(0, size - 2 * _MAX_LINE_BYTES)
        return os.pread(descriptor, size - start, start).removesuffix(b"\n").rpartition(b"\n")[2]

    def _lines_backwards(self) -> Iterator[bytes]:
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            at = stream.seek(0, os.SEEK_END)
            rest = b""
            while at > 0:
                start = max(0, at - _BLOCK_BYTES)
                stream.seek(start)
                lines = (stream.read(at - start) + rest).split(b"\n")
                rest = lines.pop(0)
                yield from reversed([line for line in lines if line])
                at = start
            if rest:
                yield rest


def _count_lines(descriptor: int) -> int:
    """Count what a reader would see as lines; a file of a thousand acts a year stays small."""
    count, at, last = 0, 0, b"\n"
    while piece := os.pread(descriptor, _BLOCK_BYTES, at):
        count += piece.count(b"\n")
        at += len(piece)
        last = piece[-1:]
    return count + (last != b"\n")


def _parse(line: bytes) -> AuditRecord | None:
    try:
        return msgspec.json.decode(line, type=AuditRecord)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _may_be_torn(line: bytes) -> bool:
    """Tell whether a line is the beginning of a record: what a power cut in the middle of writing leaves."""
    beginning = b'{"number":'
    return not line.endswith(b"}") and (line.startswith(beginning) or beginning.startswith(line))
