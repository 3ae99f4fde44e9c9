"""`swupd`: the command line of the client, with the commands, options and exit codes that scripts know.

Nothing is imported before it is known which command runs: a timer starts this program on small devices.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from overhaul.dialects.swupd.device.config import read_config, settings_of
from overhaul.dialects.swupd.device.context import Context
from overhaul.dialects.swupd.device.errors import ClientError, NotRootError, WrongUsageError
from overhaul.dialects.swupd.device.exits import Exit
from overhaul.dialects.swupd.device.options import Option, Values, describe, from_file, parse
from overhaul.dialects.swupd.device.output import Output
from overhaul.errors import NetworkError, OverhaulError, TrustError

GLOBAL_OPTIONS = (
    Option("help", "h", help="Show this help"),
    Option("path", "p", "PATH", "Work on the system below PATH"),
    Option("url", "u", "URL", "Where versions and content are"),
    Option("port", "P", "PORT", "Port of the server"),
    Option("contenturl", "c", "URL", "Where content is"),
    Option("versionurl", "v", "URL", "Where versions are told"),
    Option("format", "F", "FORMAT", "Follow this format, or staging"),
    Option("statedir", "S", "PATH", "Directory of data and cache"),
    Option("cachedir", "K", "PATH", "Directory of the cache"),
    Option("datadir", "Z", "PATH", "Directory of the data"),
    Option("certpath", "C", "PATH", "Certificate that versions must be signed with"),
    Option("max-parallel-downloads", "W", "NUMBER", "Downloads at once (15)"),
    Option("max-retries", "r", "NUMBER", "Tries after a failed download (3)"),
    Option("retry-delay", "d", "SECONDS", "Wait before the first of them, doubled each time (10)"),
    Option("nosigcheck", "n", help="Do not check any signature"),
    Option("nosigcheck-latest", help="Do not check the signatures of version files"),
    Option("ignore-time", "I", help="Do not check the clock"),
    Option("time", "t", help="Tell how long it took"),
    Option("no-scripts", "N", help="Run nothing after files have changed"),
    Option("no-boot-update", "b", help="Do not run the boot manager"),
    Option("json-output", "j", help="Print a JSON array"),
    Option("yes", "y", help="Answer yes to all questions"),
    Option("assume", value="yes|no", help="Answer all questions so"),
    Option("allow-insecure-http", help="Allow plain http"),
    Option("quiet", help="Print only what scripts read"),
    Option("verbose", help="Print more"),
    Option("debug", help="Print more, and tracebacks of errors"),
    Option("log", value="LEVEL", help="debug, info, warning or error: how much to print"),
    Option("no-progress", help="Draw no progress bars"),
    Option("wait-for-scripts", help="Wait until services have restarted"),
    Option("xattrs", help="Extended attributes are part of the content"),
    Option("stateful", help="/etc and kernels belong to the versions, too"),
    Option("skip-diskspace-check", help="Do not check for space beforehand"),
)

_VERSION = Option("version", "V", "VERSION", "Work with this version, or latest", alias="manifest")
_KEEP = Option("keepcache", "k", help="Keep what was downloaded")
_FORCE = Option("force", "x", help="Go on all the same")
_JUDGING = (
    _VERSION,
    Option("manifest", "m", "VERSION", "The same"),
    _FORCE,
    Option("quick", "q", help="Look only for what is missing"),
    Option("bundles", "B", "NAMES", "Look only at these bundles, separated by commas"),
    Option("picky", "Y", help="Also look for what no bundle has"),
    Option("picky-tree", "X", "PATH", "Where (/usr)"),
    Option("picky-whitelist", "w", "REGEX", "Leave alone what matches"),
    Option("extra-files-only", help="Look only for what no bundle has"),
    Option("file", value="PATH", help="Look only at PATH and below"),
)
_STAGED = Option("staged", value="DIRECTORY", help="Update a copy of the system kept there, and switch to it")


@dataclass(frozen=True)
class Command:
    """One sub-command: its options, and who runs it."""

    help: str
    #: `module:function`; the function takes the context, and the words where `takes_words`.
    runs: str
    options: tuple[Option, ...] = ()
    takes_words: bool = False
    #: Options that call for root; "*" means that the command always does.
    needs_root: frozenset[str] = field(default=frozenset({"*"}))


_NEVER: frozenset[str] = frozenset()

COMMANDS: dict[str, Command] = {
    "info": Command("Show the version and the addresses", "housekeeping:info", needs_root=_NEVER),
    "autoupdate": Command(
        "Switch automatic updates on or off",
        "housekeeping:autoupdate",
        (Option("enable", help="Switch them on"), Option("disable", help="Switch them off")),
        needs_root=frozenset({"enable", "disable"}),
    ),
    "check-update": Command("Tell whether there is a new version", "updating:check_update", needs_root=_NEVER),
    "update": Command(
        "Update to the latest version",
        "staged:update",
        (
            _VERSION,
            Option("manifest", "m", "VERSION", "The same"),
            Option("status", "s", help="Only tell whether there is a new version"),
            _KEEP,
            Option("download", help="Only download"),
            Option("incremental", help="One release at a time"),
            Option("update-search-file-index", help="Also make the index for search-file"),
            Option("3rd-party", help="Also update 3rd-party repositories"),
            Option("dry-run", help="List what would change, and change nothing"),
            _STAGED,
        ),
    ),
    "rollback": Command("Go back to the system before the last staged update", "staged:rollback", (_STAGED,)),
    "bundle-add": Command(
        "Install bundles",
        "bundling:bundle_add",
        (Option("skip-optional", help="Leave out what they only suggest"), _KEEP),
        takes_words=True,
    ),
    "bundle-remove": Command(
        "Remove bundles",
        "bundling:bundle_remove",
        (
            Option("force", "x", help="Also remove what needs them"),
            Option("recursive", "R", help="Also remove what only they need"),
            Option("orphans", help="Remove what nobody needs"),
        ),
        takes_words=True,
    ),
    "bundle-list": Command(
        "List bundles",
        "bundling:bundle_list",
        (
            Option("all", "a", help="All that exist"),
            Option("has-dep", "D", "BUNDLE", "Those that need BUNDLE"),
            Option("deps", value="BUNDLE", help="Those that BUNDLE needs"),
            Option("status", help="Say whether they are installed"),
            Option("orphans", help="Those that nobody needs"),
        ),
        needs_root=frozenset({"all", "has_dep", "deps", "status", "orphans"}),
    ),
    "bundle-info": Command(
        "Show a bundle",
        "bundling:bundle_info",
        (_VERSION, Option("dependencies", help="And what it needs"), Option("files", help="And its files")),
        takes_words=True,
    ),
    "search": Command("Search for a bundle", "searching:search", takes_words=True),
    "search-file": Command("Tell which bundle has a file", "searching:search_file", takes_words=True),
    "diagnose": Command("Compare the system with its version", "verifying:diagnose", _JUDGING),
    "repair": Command("Make the system what its version says", "verifying:repair", (*_JUDGING, _KEEP)),
    "os-install": Command(
        "Install a system into a directory",
        "verifying:os_install",
        (
            _VERSION,
            Option("manifest", "m", "VERSION", "The same"),
            _FORCE,
            Option("bundles", "B", "NAMES", "Also these bundles, separated by commas"),
            Option("statedir-cache", "s", "PATH", "Another cache to take content from"),
            Option("download", help="Only download"),
            Option("skip-optional", help="Leave out what bundles only suggest"),
            _KEEP,
        ),
        takes_words=True,
    ),
    "mirror": Command(
        "Show or set the addresses",
        "housekeeping:mirror",
        (
            Option("set", "s", "URL", "Use this address"),
            Option("unset", "U", help="Use the system's own addresses again"),
        ),
        needs_root=frozenset({"set", "unset"}),
    ),
    "clean": Command(
        "Remove what is cached",
        "housekeeping:clean",
        (Option("all", help="Also what is in use"), Option("dry-run", help="Only list it")),
    ),
    "hashdump": Command(
        "Print the hash of a file",
        "housekeeping:hashdump",
        (Option("no-xattrs", "n", help="Leave out extended attributes"),),
        takes_words=True,
        needs_root=_NEVER,
    ),
    "verify": Command(
        "diagnose, repair and os-install of earlier days",
        "verifying:verify",
        (
            Option("version", "V", "VERSION", "Work with this version; alone: print more", is_optional=True),
            Option("manifest", "m", "VERSION", "Work with this version"),
            Option("fix", "f", help="Repair"),
            Option("install", "i", help="Install"),
            *_JUDGING[2:],
            Option("statedir-cache", "s", "PATH", "Another cache to take content from"),
            _KEEP,
        ),
    ),
    "3rd-party": Command(
        "Work with 3rd-party repositories",
        "thirdparty:third_party",
        (
            Option("repo", "R", "NAME", "Only this repository"),
            _FORCE,
        ),
        takes_words=True,
    ),
}
_SEARCH_OPTIONS = (
    _VERSION,
    Option("library", "l", help="Only below /usr/lib"),
    Option("binary", "B", help="Only in /usr/bin"),
    Option("top", "T", "NUMBER", "At most so many bundles"),
    Option("csv", "m", help="A line a path, separated by commas"),
    Option("init", "i", help="Only make the index"),
    Option("order", "o", "alpha|size", "Sort so"),
    Option("regexp", help="The term is a regular expression"),
)
for _name in ("search", "search-file"):
    COMMANDS[_name] = Command(COMMANDS[_name].help, COMMANDS[_name].runs, _SEARCH_OPTIONS, takes_words=True)

_LOG_LEVELS = {
    **dict.fromkeys(("debug", "4"), "debug"),
    **dict.fromkeys(("verbose", "3"), "verbose"),
    **dict.fromkeys(("info", "stdout", "stderr", "2"), ""),
    **dict.fromkeys(("warning", "error", "quiet", "1", "0"), "quiet"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the console script."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(int(run(words)))


def run(words: Sequence[str]) -> Exit:
    """Run one command and return its exit code; nothing but a bug raises."""
    if not words or words[0] in {"-h", "--help", "help"}:
        sys.stdout.write(_overview() + "\n")
        return Exit.OK if words else Exit.BAD_OPTION
    if words[0] in {"-v", "--version"}:
        sys.stdout.write(_about() + "\n")
        return Exit.OK
    name = words[0]
    if name not in COMMANDS:
        sys.stderr.write(f"Error: {name!r} is no command; see `swupd --help`." + "\n")
        return Exit.BAD_OPTION
    try:
        values, rest = _read(name, words[1:])
    except ClientError as error:
        sys.stderr.write(f"Error: {error}" + "\n")
        return error.status
    if values.get("help") is True:
        sys.stdout.write(_help(name) + "\n")
        return Exit.OK
    return run_command(name, values, rest)


def run_command(name: str, values: Values, rest: Sequence[str]) -> Exit:
    """Run a command whose options are read, and turn what goes wrong into its exit code."""
    output = Output(
        is_quiet=values.get("quiet") is True,
        is_verbose=values.get("verbose") is True or values.get("debug") is True,
        is_json=values.get("json_output") is True,
        shows_progress=values.get("no_progress") is not True,
    )
    context = Context(values, output)
    began = time.monotonic()
    output.open(name)
    code = guarded(lambda: _dispatch(name, context, rest), output, has_tracebacks=values.get("debug") is True)
    if values.get("time") is True:
        output.say(f"Total time: {time.monotonic() - began:.3f} s, CPU {time.process_time():.3f} s")
    output.close(code)
    return code


def guarded(act: Callable[[], Exit], output: Output, *, has_tracebacks: bool = False) -> Exit:
    """Do `act` and return its exit code, or that of what went wrong, after saying it."""
    try:
        return act()
    except ClientError as error:
        output.fail(str(error))
        code = getattr(error, "kind", error.status)
    except TrustError as error:
        output.fail(str(error))
        code = Exit.MANIFEST
    except NetworkError as error:
        output.fail(str(error))
        code = Exit.NO_CONNECTION
    except OverhaulError as error:
        output.fail(str(error))
        code = Exit.UNEXPECTED
    except OSError as error:
        import errno

        place = f"{error.filename}: " if error.filename is not None else ""
        output.fail(f"The system refused {place}{error.strerror or error}; mend that and run the command again.")
        code = Exit.DISK_SPACE if error.errno in {errno.ENOSPC, errno.EDQUOT} else Exit.UNEXPECTED
    except KeyboardInterrupt:
        output.fail("Interrupted; what was done so far is kept, run the command again to go on.")
        code = Exit.NO
    if has_tracebacks:
        import traceback

        traceback.print_exc()
    return Exit(code)


def _dispatch(name: str, context: Context, rest: Sequence[str]) -> Exit:
    command = COMMANDS[name]
    if os.geteuid() != 0 and ("*" in command.needs_root or command.needs_root & context.values.keys()):
        raise NotRootError(command=name)
    if rest and not command.takes_words:
        raise WrongUsageError(f"{name} does not know what {rest[0]!r} is for")
    if "manifest" in context.values:
        context.values["version"] = context.values.pop("manifest")
    if context.values.get("version") is True:
        # The `verify -V` of the first clients; a number after it makes it the version of today's.
        del context.values["version"]
        context.output.is_verbose = True
    import importlib

    module, _colon, function = command.runs.partition(":")
    runner: Callable[..., Exit] = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    return runner(context, rest) if command.takes_words else runner(context)


def _read(name: str, words: Sequence[str]) -> tuple[Values, list[str]]:
    if name == "3rd-party":
        # Its sub-command brings options of its own.
        sub = next((word for word in words if not word.startswith("-")), "")
        options = table(name) if sub not in COMMANDS else _merged(table(name), table(sub))
        section = f"3rd-party-{sub}"
    else:
        options, section = table(name), name
    given, rest = parse(words, options)
    values = from_file(settings_of(read_config(), section), options, source=f"section {section} of a config file")
    values.update(given)
    level = values.get("log")
    if isinstance(level, str):
        if level.lower() not in _LOG_LEVELS:
            raise WrongUsageError(f"--log is {level!r}, which is none of debug, verbose, info, warning and error")
        if chosen := _LOG_LEVELS[level.lower()]:
            values[chosen] = True
    return values, rest


def table(name: str) -> tuple[Option, ...]:
    """Return all options of a command; its own hide global ones of the same name or letter."""
    return _merged(COMMANDS[name].options, GLOBAL_OPTIONS)


def _merged(own: Sequence[Option], others: Sequence[Option]) -> tuple[Option, ...]:
    letters = {option.short for option in own if option.short}
    names = {option.name for option in own}
    kept = []
    for option in others:
        if option.name in names:
            continue
        is_free = option.short not in letters
        kept.append(option if is_free else replace(option, short=""))
    return (*own, *kept)


def _overview() -> str:
    lines = ["Usage: swupd COMMAND [OPTION...]", "", "Commands:"]
    lines += [f"   {name:<16} {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "`swupd COMMAND --help` shows the options of a command."]
    return "\n".join(lines)


def _help(name: str) -> str:
    command = COMMANDS[name]
    words = " [WORD...]" if command.takes_words else ""
    own = f"\nOptions:\n{describe(command.options)}\n" if command.options else ""
    return f"Usage: swupd {name} [OPTION...]{words}\n\n{command.help}.\n{own}\nGlobal options:\n" + describe(
        _merged(command.options, GLOBAL_OPTIONS)[len(command.options) :]
    )


def _about() -> str:
    import overhaul
    from overhaul.dialects.swupd.device.state import DEFAULT_STATE
    from overhaul.dialects.swupd.device.system import CERTIFICATE

    return (
        f"swupd-client (Overhaul) {overhaul.__version__}\n"
        f"State directory: /{DEFAULT_STATE}\nCertificate: /{CERTIFICATE}\n"
        "Formats: 3 and later; signatures: PKCS#7; archives: plain, gzip, bzip2, xz, zstd"
    )
