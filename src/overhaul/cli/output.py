"""How every command speaks: bars and sentences for people, JSON for scripts, one exit code an error family."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click
import msgspec

from overhaul.errors import DeviceError, OperatorError, OverhaulError
from overhaul.progress import Progress, Silence

#: The exit code of a run that a person or a supervisor interrupted; what was done so far is kept.
INTERRUPTED_EXIT_CODE = 130
#: The answer of `overhaul policy` when a rollout is halted or is to be.
HALTED_EXIT_CODE = 22

#: What only an extra brings; the library a command misses tells which one.
_EXTRA_OF_LIBRARY = {
    "alembic": "server",
    "fastapi": "server",
    "hdiffpatch": "publish",
    "jinja2": "server",
    "joserfc": "oidc",
    "obstore": "publish",
    "prometheus_client": "server",
    "pydantic": "server",
    "pydantic_settings": "server",
    "sqlalchemy": "server",
    "starlette": "server",
    "structlog": "server",
    "uvicorn": "server",
    "yaml": "server",
}


class MissingExtraError(OperatorError):
    """A command of the publisher or server on an installation for devices."""

    def __init__(self, *, library: str, extra: str) -> None:
        self.library = library
        self.extra = extra
        super().__init__(
            f"This command needs {library}, which is not installed here; install it with "
            f"`pip install 'overhaul[{extra}]'`."
        )


#: What runs on a device; everything else runs where releases are published or served.
_DEVICE_COMMANDS = (("device",), ("kit", "install"), ("sysupgrade",))


class SystemRefusalError(OperatorError):
    """The publisher's or server's system refused a file: a full disk, a missing right, a directory in the way."""

    def __init__(self, error: OSError) -> None:
        self.cause = error
        super().__init__(_refusal(error))


class DeviceRefusalError(DeviceError):
    """The device's system refused a file: a full disk, a missing right, a directory in the way."""

    def __init__(self, error: OSError) -> None:
        self.cause = error
        super().__init__(_refusal(error))


def _refusal(error: OSError) -> str:
    place = error.filename if error.filename is not None else "a file it was working on"
    reason = error.strerror or str(error)
    return f"The system refused {place}: {reason}. Check its path, rights and free space, and run the command again."


json_option: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def print_json(value: object) -> None:
    """Print `value` (records, dictionaries, lists) as one indented JSON document on standard output."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def human_bytes(size: int) -> str:
    """Return `size` bytes with a decimal unit, as a person wants to read it."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


@contextmanager
def progress_bars(*, quiet: bool = False) -> Iterator[Progress]:
    """Yield a progress that draws bars on standard error when that is a terminal, and is silent otherwise."""
    if quiet or not sys.stderr.isatty():
        yield Silence()
        return
    from overhaul.cli.bars import Bars

    with Bars() as bars:
        yield bars


def _forget_unwritten_output() -> None:
    """Let go of what standard output did not take: Python would write it once more at its end, and leave with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def run(command: click.Command) -> NoReturn:
    """Run `command` with the process's arguments and leave with the exit code of what happened.

    Errors of ours become one sentence on standard error; with `--json` among the arguments they become a JSON
    object there. What the system refused (a full disk, a missing right) is the operator's or device owner's to
    mend. Anything else is a bug and shows its traceback.
    """
    try:
        code = command.main(standalone_mode=False)
    except OverhaulError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if "--json" in sys.argv:
            _print_document(type(error).__name__, error.format_message(), retryable=False)
        else:
            error.show()
        sys.exit(error.exit_code)
    except OSError as error:
        _forget_unwritten_output()
        words = tuple(word for word in sys.argv[1:] if not word.startswith("-"))
        on_device = any(words[: len(path)] == path for path in _DEVICE_COMMANDS)
        refusal = DeviceRefusalError(error) if on_device else SystemRefusalError(error)
        _print_error(refusal)
        sys.exit(refusal.exit_code)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRA_OF_LIBRARY:
            raise
        missing = MissingExtraError(library=library, extra=_EXTRA_OF_LIBRARY[library])
        _print_error(missing)
        sys.exit(missing.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; what was done so far is kept, run the command again to go on.", err=True)
        sys.exit(INTERRUPTED_EXIT_CODE)
    sys.exit(code if isinstance(code, int) else 0)


def _print_error(error: OverhaulError) -> None:
    if "--json" in sys.argv:
        _print_document(type(error).__name__, str(error), retryable=error.retryable)
    else:
        click.echo(f"Error: {error}", err=True)


def _print_document(name: str, message: str, *, retryable: bool) -> None:
    document = {"error": name, "message": message, "retryable": retryable}
    click.echo(msgspec.json.encode(document).decode(), err=True)
