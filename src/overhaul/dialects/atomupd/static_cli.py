"""`steamos-atomupd-staticserver -c FILE [-r] [-d | -v]`: write the static tree into the working directory.

Exit codes: 0 fine; 1 any error, also when good images were written and bad ones left out; 2 wrong usage.
"""

import argparse
import datetime
import fcntl
import gc
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from overhaul.dialects.atomupd.static_state import is_unchanged
from overhaul.errors import BusyError, OverhaulError

if TYPE_CHECKING:
    from overhaul.dialects.atomupd.catalogue import Catalogue
    from overhaul.dialects.atomupd.static_generator import StaticGenerator

_LOGGER = logging.getLogger(__name__)
_LOCK_NAME = ".lockfile.lock"
_TRIGGER = "updated.txt"


class AlreadyRunningError(BusyError):
    """Another generator writes into the same directory."""

    exit_code = 1

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        super().__init__(f"Another static server writes into {directory}; wait until it has ended.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the console script. Return its exit code."""
    parser = argparse.ArgumentParser(
        prog="steamos-atomupd-staticserver",
        description="Write the answers for all images of a pool as JSON files into the working directory.",
    )
    parser.add_argument("-c", "--config", metavar="FILE", type=Path, required=True, help="configuration file")
    parser.add_argument("-r", "--run-daemon", action="store_true", help=f"run again whenever {_TRIGGER} changes")
    said = parser.add_mutually_exclusive_group()
    said.add_argument("-d", "--debug", action="store_true", help="say everything")
    said.add_argument("-v", "--verbose", action="store_true", help="say what is written")
    options = parser.parse_args(argv)
    level = logging.DEBUG if options.debug else logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    root = Path.cwd()
    try:
        with _only_one(root):
            if not options.run_daemon and is_unchanged(root, options.config):
                _LOGGER.info("nothing has changed")
                return 0
            # Loaded only now: most runs end above, and take as long as a program takes to start.
            from overhaul.dialects.atomupd.server_configuration import read_server_configuration
            from overhaul.dialects.atomupd.static_generator import StaticGenerator

            if not options.run_daemon:
                # All that is made lives to the end of this short run: there is nothing to collect.
                gc.disable()
            generator = StaticGenerator(read_server_configuration(options.config), root)
            if options.run_daemon:
                _run_daemon(generator)
                return 0
            return 1 if _generate(generator).problems else 0
    except OverhaulError as error:
        _LOGGER.error("%s", error)  # noqa: TRY400 - a sentence for a person; bugs keep their traceback
    except OSError as error:
        _LOGGER.error("The system refused %s: %s", error.filename, error.strerror)  # noqa: TRY400 - as above
    finally:
        gc.enable()
    return 1


def _generate(generator: "StaticGenerator") -> "Catalogue":
    catalogue, change = generator.generate()
    for problem in catalogue.problems:
        _LOGGER.error("left out: %s", problem)
    for warning in catalogue.warnings:
        _LOGGER.warning("%s", warning)
    for path in change.stale:
        _LOGGER.warning("%s is the answer for no image of the pool", path)
    for path in change.removed:
        _LOGGER.info("removed %s", path)
    for path in change.written:
        _LOGGER.info("wrote %s", path)
    _LOGGER.info("%d files written, %d as they were", len(change.written), change.unchanged)
    return catalogue


def _run_daemon(generator: "StaticGenerator") -> None:
    """Generate now, and again whenever a publisher touches `updated.txt` in a directory of the pool."""
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    seen = _triggers(generator.configuration.pool)
    _generate(generator)
    while not ended.wait(generator.configuration.look_every_s):
        now = _triggers(generator.configuration.pool)
        touched = [name for name, stamp in now.items() if seen.get(name) != stamp]
        seen = now
        if not touched:
            continue
        try:
            _generate(generator)
            _tell(generator, touched)
        except (OverhaulError, OSError) as error:
            # The pool may be mended by the next time; the old answers stay.
            _LOGGER.error("%s", error)  # noqa: TRY400 - a sentence for a person


def _triggers(pool: Path) -> dict[str, tuple[int, int, int]]:
    found: dict[str, tuple[int, int, int]] = {}
    for path in sorted(pool.glob(f"*/{_TRIGGER}")):
        try:
            status = path.stat()
        except OSError:
            continue
        found[path.parent.name] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return found


def _tell(generator: "StaticGenerator", names: list[str]) -> None:
    for name in names:
        shutil.copyfile(generator.configuration.pool / name / _TRIGGER, generator.root / f"{name}-{_TRIGGER}")
    now = datetime.datetime.now().astimezone().replace(tzinfo=None)
    (generator.root / _TRIGGER).write_text(now.isoformat(), encoding="utf-8")


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Hold the lock that generators of this tree have always taken; it goes with the process."""
    path = root / _LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before removes the name at its end: a lock on what it removed would keep nobody out.
            if os.stat(path).st_ino != os.fstat(descriptor).st_ino:
                raise AlreadyRunningError(root)
        except OSError as error:
            raise AlreadyRunningError(root) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
