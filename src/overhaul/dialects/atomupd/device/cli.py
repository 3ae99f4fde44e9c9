"""`steamos-atomupd-client`: options, output and exit codes of the client that devices already call.

Exit codes: 0 done, up to date, or printed; 1 every error, also when interrupted; 2 the server answered every address
with a status of 400 to 499, or wrong usage. An early client (one with a QueryUrl only) ends with 1 when it installed an
update, with 0 when there was nothing to do, and with 255 on every error.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from overhaul.dialects.atomupd.device.asking import UnknownToServerError, Wish
from overhaul.dialects.atomupd.device.opening import open_client
from overhaul.dialects.atomupd.device.settings import DEFAULT_CONFIGURATION, ClientSettings, Era, load_settings
from overhaul.dialects.atomupd.device.updating import Order, Outcome, normalised_build_id, run
from overhaul.errors import OperatorError, OverhaulError

_DEFAULT_ATTEMPTS = 3
_log = logging.getLogger("atomupd")


class NotRootError(OperatorError):
    """The client was called by somebody who cannot write slots."""

    def __init__(self) -> None:
        super().__init__("Installing an update needs the rights of root; run the command with sudo.")


class _Interrupted(BaseException):
    """A signal asked for the end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the client and return its exit code."""
    parser = _parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    _check(parser, options)
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.INFO,
        format="%(levelname)s:%(filename)s:%(lineno)d: %(message)s",
        stream=sys.stderr,
    )
    try:
        settings = load_settings(options.config)
    except OverhaulError as error:
        if not given:
            # Called without anything, the client has always told how to call it.
            parser.print_help()
            return 0
        _log.error("%s", error)
        return 1
    if not given and settings.era is Era.EARLY:
        parser.print_help()
        return 0
    return _run(settings, options)


def _run(settings: ClientSettings, options: argparse.Namespace) -> int:
    failed = 255 if settings.early_exit_codes else 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    try:
        order = _order(options)
        if not order.query_only and settings.era is Era.NEWEST and os.geteuid() != 0:
            raise NotRootError
        client = open_client(
            settings,
            tell=(lambda _line: None) if options.quiet else _tell,
            warn=_log.warning,
            fallback_after=options.fallback_after_failed_attempts,
        )
        if settings.era is Era.EARLY or not order.query_only:
            client.files.make()
        outcome = run(client, order)
    except UnknownToServerError as error:
        _log.error("%s", error)
        return failed if settings.early_exit_codes else 2
    except OverhaulError as error:
        _log.error("%s", error)
        return failed
    except _Interrupted:
        _log.error("Interrupted; run the command again to go on.")
        return failed
    except BrokenPipeError:
        # Whoever read our lines is gone; a flush at exit would only complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failed
    if outcome is Outcome.UP_TO_DATE:
        _log.info("There is no update.")
    return 1 if outcome is Outcome.UPDATED and settings.early_exit_codes else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steamos-atomupd-client", description="Look for an update of this device's system, and install it."
    )
    parser.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIGURATION, metavar="FILE")
    parser.add_argument("-d", "--debug", action="store_true", help="log more to standard error")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing on standard output")
    parser.add_argument("--query-only", action="store_true", help="print what the server offers, and stop")
    parser.add_argument("--estimate-download-size", action="store_true", help="estimate sizes the server leaves out")
    parser.add_argument(
        "--update-file", type=Path, metavar="FILE", help="take this answer instead of asking the server"
    )
    parser.add_argument("--update-from-url", default="", metavar="URL", help="install this bundle without asking")
    parser.add_argument("--chunks-store-url", default="", metavar="URL", help="where that bundle's chunks are")
    parser.add_argument("--update-version", default="", metavar="BUILDID", help="install only if this build is next")
    parser.add_argument("--variant", help="ask for another variant")
    parser.add_argument("--branch", help="ask for another branch")
    parser.add_argument("--penultimate-update", action="store_true", help="ask for the last image but one")
    parser.add_argument("--fallback-after-failed-attempts", type=int, default=_DEFAULT_ATTEMPTS, metavar="N")
    manifest = parser.add_mutually_exclusive_group()
    manifest.add_argument("--manifest-file", type=Path, metavar="FILE", help="what runs on this device")
    manifest.add_argument("--mk-manifest-file", action="store_true", help="take what runs from os-release")
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.chunks_store_url and not options.update_from_url:
        parser.error("--chunks-store-url needs --update-from-url")
    if options.update_from_url and options.query_only:
        parser.error("--update-from-url asks nobody, so there is nothing to print with --query-only")
    if options.fallback_after_failed_attempts < 0:
        parser.error("--fallback-after-failed-attempts needs a number that is not below 0")


def _order(options: argparse.Namespace) -> Order:
    return Order(
        query_only=options.query_only,
        estimate_sizes=options.estimate_download_size,
        update_file=options.update_file,
        update_url=options.update_from_url,
        chunks_store_url=options.chunks_store_url.rstrip("/"),
        update_version=normalised_build_id(options.update_version) if options.update_version else "",
        wish=Wish(variant=options.variant, branch=options.branch, penultimate=options.penultimate_update),
        manifest_file=options.manifest_file,
        from_os_release=options.mk_manifest_file,
    )


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise _Interrupted


if __name__ == "__main__":
    sys.exit(main())
