"""The worker: takes a lease, builds, has the result signed, stores it, ends the lease.

A heart beats beside each build. It renews the lease, writes the log, and learns that the build was cancelled; when
the lease cannot be renewed in time the build is stopped before anybody else may have it. A worker that is asked to
stop gives its build back. One that is killed leaves everything to the queue: the sandbox dies with it, what it wrote
lies in directories that the next one removes, and nothing has a final name before it is whole.
"""

import hashlib
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from overhaul.builds.builder import Builder, Built, Workplace
from overhaul.builds.queue import BuildQueue, LostLeaseError
from overhaul.builds.records import BuildRecord, Lease, Lifetimes
from overhaul.builds.results import (
    BuildFailedError,
    BuildFailure,
    BuildResult,
    BuiltImage,
    FailureKind,
    Phase,
    PublishedRelease,
)
from overhaul.builds.sandbox import LimitExceededError, remove_tree
from overhaul.builds.signing import STATEMENT, SUMS, Claim, RefusedClaimError, Signer
from overhaul.builds.store import ArtefactRecord, ArtefactStore, UnsafeOutputError, list_outputs, take_outputs
from overhaul.errors import OverhaulError

_BEATS_PER_LEASE = 6
_LONGEST_BEAT_S = 2.0
_WAIT_S = 5.0


class _StoppedError(OverhaulError):
    """The build must not go on."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


_CANCELLED, _LOST, _SHUTDOWN = "cancelled", "lease lost", "worker is stopping"


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Builds one build at a time, with these builders."""

    name: str
    queue: BuildQueue
    store: ArtefactStore
    builders: Sequence[Builder]
    signer: Signer | None
    #: Directory for its work; its own, and emptied when it starts.
    directory: Path
    lifetimes: Lifetimes = field(default_factory=Lifetimes)
    output_limit_bytes: int = 4 << 30
    clock: Callable[[], float] = time.time

    def run(self, stop: threading.Event) -> None:
        """Build until `stop` is set."""
        if self.directory.exists():
            remove_tree(self.directory)  # what one that was killed left
        while not stop.is_set():
            if not self.run_one(stop):
                self.queue.wait(_WAIT_S)

    def run_one(self, stop: threading.Event | None = None) -> bool:
        """Build the next build; return False when none waits."""
        lease = self.queue.lease(worker=self.name, builders=[builder.name for builder in self.builders])
        if lease is None:
            return False
        heart = _Heart(self.queue, lease, stop or threading.Event())
        heart.start()
        try:
            end = self._end_of(lease, heart)
        finally:
            heart.stop()
        try:
            if end is None:
                self.queue.give_back(lease)
            else:
                self.queue.finish(lease, end)
        except LostLeaseError:
            # Somebody else has it, and will make the same artefact or has made it.
            return True
        return True

    def _end_of(self, lease: Lease, heart: "_Heart") -> BuildResult | BuildFailure | None:  # noqa: PLR0911 - one an end
        work = self.directory / str(lease.build.build_id)
        try:
            work.mkdir(parents=True)
            return self._build(lease.build, work, heart)
        except BuildFailedError as error:
            heart.log(f"\n{error.failure.detail}\n")
            return error.failure
        except LimitExceededError as error:
            kind = FailureKind.TIMED_OUT if error.limit == "time" else FailureKind.LIMIT
            return BuildFailure(kind=kind, detail=str(error))
        except (RefusedClaimError, UnsafeOutputError) as error:
            return BuildFailure(kind=FailureKind.SIGNATURE_REFUSED, detail=str(error))
        except _StoppedError as error:
            if error.reason == _CANCELLED:
                return BuildFailure(kind=FailureKind.CANCELLED, detail="The build was cancelled")
            return None
        except LostLeaseError:
            return None
        except OverhaulError as error:
            return BuildFailure(kind=FailureKind.SETUP_FAILED, detail=str(error))
        except Exception as error:
            # A bug of ours ends this build and not the worker; whoever operates it finds the trace in the log.
            heart.log(traceback.format_exc())
            return BuildFailure(kind=FailureKind.INTERNAL, detail=f"The builder failed ({type(error).__name__})")
        finally:
            if work.exists():
                remove_tree(work)

    def _build(self, build: BuildRecord, work: Path, heart: "_Heart") -> BuildResult:
        recipe = build.recipe
        builder = {builder.name: builder for builder in self.builders}[recipe.builder]
        began = time.monotonic()
        built = builder.build(recipe, Workplace(directory=work, artefact=build.name, watcher=heart))
        heart.phase(Phase.SIGNING_IMAGES)
        with self.store.incoming(build.name) as incoming:
            take_outputs(built.outputs, incoming, limit_bytes=self.output_limit_bytes)
            unsigned = {file.name: file.sha256 for file in list_outputs(incoming)}
            release = self._sign(build, built, incoming)
            heart.check()
            record = ArtefactRecord(
                artefact=build.name,
                build_id=build.build_id,
                recipe=recipe,
                builder_digest=built.builder_digest,
                files=list_outputs(incoming),
                added_at=self.clock(),
                expires_at=self.clock() + self.lifetimes.of(recipe, failed=False),
            )
            self.store.add(incoming, record)
        result = _result(build, built, record, unsigned, build_seconds=time.monotonic() - began)
        return msgspec.structs.replace(result, release=release)

    def _sign(self, build: BuildRecord, built: Built, incoming: Path) -> PublishedRelease | None:
        if self.signer is None:
            return None
        signed = self.signer.sign(
            Claim(
                build_id=build.build_id,
                recipe_key=build.recipe.key,
                builder_digest=built.builder_digest,
                manifest_text=built.manifest_text.decode(errors="replace"),
                directory=str(incoming),
            )
        )
        texts: Mapping[str, str] = {
            SUMS: signed.sums,
            f"{SUMS}.sig": signed.sums_signature,
            STATEMENT: signed.statement,
            f"{STATEMENT}.sig": signed.statement_signature,
        }
        for name, text in texts.items():
            (incoming / name).write_text(text)
        return signed.release


def _result(
    build: BuildRecord, built: Built, record: ArtefactRecord, unsigned: Mapping[str, str], *, build_seconds: float
) -> BuildResult:
    digests = {file.name: file.sha256 for file in record.files}
    return BuildResult(
        artefact=build.name,
        files=record.files,
        images=tuple(
            BuiltImage(
                name=image.name,
                type=image.type,
                filesystem=image.filesystem,
                sha256=digests[image.name],
                sha256_unsigned=unsigned[image.name],
            )
            for image in built.images
            if image.name in digests
        ),
        manifest=dict(built.manifest),
        manifest_sha256=hashlib.sha256(built.manifest_text).hexdigest(),
        builder_digest=built.builder_digest,
        document=dict(built.document),
        command=built.command,
        command_packages=built.command_packages,
        stdout=built.stdout,
        stderr=built.stderr,
        build_seconds=build_seconds,
        built_at=record.added_at,
    )


class _Heart:
    """Keeps a lease alive and follows the build it is for."""

    def __init__(self, queue: BuildQueue, lease: Lease, shutdown: threading.Event) -> None:
        self._queue = queue
        self._lease = lease
        self._shutdown = shutdown
        started_at = lease.build.started_at
        self._lease_s = lease.ends_at - (started_at if started_at is not None else lease.ends_at - 60.0)
        #: By this process's own clock, which no correction of the time moves.
        self._safe_until = time.monotonic() + self._lease_s
        self._phase = Phase.INIT
        self._log: list[str] = []
        self._writing = threading.Lock()
        self._reason = ""
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_ended, name="build-heart", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """End after a last beat, which writes what is left of the log."""
        self._ended.set()
        self._wake.set()
        self._thread.join()

    def phase(self, phase: Phase) -> None:
        """Note that the build is in `phase` now, and tell everybody at once."""
        self._phase = phase
        self._wake.set()
        self.check()

    def log(self, text: str) -> None:
        """Add `text` to the live log."""
        with self._writing:
            self._log.append(text)

    def check(self) -> None:
        """Raise when the build must stop."""
        if self._shutdown.is_set():
            raise _StoppedError(_SHUTDOWN)
        if time.monotonic() >= self._safe_until:
            raise _StoppedError(_LOST)
        if self._reason:
            raise _StoppedError(self._reason)

    def _beat_until_ended(self) -> None:
        beat_s = min(self._lease_s / _BEATS_PER_LEASE, _LONGEST_BEAT_S)
        while not self._ended.is_set():
            self._wake.wait(beat_s)
            self._wake.clear()
            self._beat()

    def _beat(self) -> None:
        with self._writing:
            text, self._log = "".join(self._log), []
        asked_at = time.monotonic()
        try:
            renewed = self._queue.renew(self._lease, phase=self._phase)
            self._safe_until = asked_at + self._lease_s
            if renewed.build.cancel_requested:
                self._reason = _CANCELLED
            if text:
                self._queue.append_log(self._lease, text)
        except LostLeaseError:
            self._reason = _LOST
        except OverhaulError:
            # The database did not answer; until the lease is over there are more beats.
            with self._writing:
                self._log.insert(0, text)
