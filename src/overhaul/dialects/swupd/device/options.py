"""The grammar of the command line: a table of options, long and short, abbreviated, joined, with configuration files.

One table serves parsing, help and the keys of configuration files, and a start-up that matters to a timer on a
small device is spared the general parsers. As getopt_long does: options and words may be mixed, `--` ends options,
`--name=value` and `--name value` are one, `-abc` is `-a -b -c`, and a long name may be cut short while it is
unique. A switch also takes `=true` or `=false`, so that a command line can take back what a configuration file set.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from overhaul.dialects.swupd.device.errors import WrongUsageError

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})

#: What was given: a switch is a truth value, anything else the words given, the last first to be asked.
Values = dict[str, str | bool]


@dataclass(frozen=True, slots=True)
class Option:
    """One option; `value` names its argument in the help, None for a switch."""

    name: str
    short: str = ""
    value: str | None = None
    help: str = ""
    #: A long name of earlier days for the same thing.
    alias: str = ""
    #: Whether the argument may be left out where a word that cannot be one follows (`verify -V`).
    is_optional: bool = False

    @property
    def key(self) -> str:
        """The option's key in configuration files and in what parsing returns."""
        return self.name.replace("-", "_")


def parse(words: Sequence[str], options: Iterable[Option]) -> tuple[Values, list[str]]:
    """Return the options given in `words` by key, and the words that are none.

    Raises:
        WrongUsageError: Something in `words` does not fit the table.
    """
    table = tuple(options)
    by_short = {option.short: option for option in table if option.short}
    by_long = {name: option for option in table for name in (option.name, option.alias) if name}
    values: Values = {}
    rest: list[str] = []
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        if word == "--":
            rest.extend(reversed(waiting))
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            option = _long(name, by_long)
            _take(option, f"--{option.name}", value if equals else None, waiting, values)
        elif word.startswith("-") and word != "-":
            _cluster(word, by_short, waiting, values)
        else:
            rest.append(word)
    return values, rest


def from_file(section: Mapping[str, str], options: Iterable[Option], *, source: str) -> Values:
    """Return the options that a section of a configuration file sets; unknown keys are other commands' business.

    Raises:
        WrongUsageError: A switch is set to what is neither true nor false.
    """
    values: Values = {}
    for option in options:
        text = section.get(option.key)
        if text is not None:
            values[option.key] = text if option.value is not None else _truth(text, f"{option.key} in {source}")
    return values


def describe(options: Iterable[Option]) -> str:
    """Return the lines of a help text for `options`."""
    lines = []
    for option in options:
        if not option.help:
            continue
        left = f"-{option.short}, " if option.short else "    "
        left += f"--{option.name}" + (f"={option.value}" if option.value else "")
        lines.append(f"   {left:<36} {option.help}")
    return "\n".join(lines)


def _long(name: str, by_long: Mapping[str, Option]) -> Option:
    if name in by_long:
        return by_long[name]
    found = {option.name: option for known, option in by_long.items() if known.startswith(name)}
    if not found:
        raise WrongUsageError(f"The option --{name} does not exist")
    if len(found) > 1:
        raise WrongUsageError(f"--{name} may mean {' or '.join(f'--{known}' for known in sorted(found))}")
    return next(iter(found.values()))


def _cluster(word: str, by_short: Mapping[str, Option], waiting: list[str], values: Values) -> None:
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        option = by_short.get(letter)
        if option is None:
            raise WrongUsageError(f"The option -{letter} does not exist")
        if option.value is None:
            values[option.key] = True
            continue
        _take(option, f"-{letter}", letters.removeprefix("=") if letters else None, waiting, values)
        return


def _take(option: Option, shown: str, value: str | None, waiting: list[str], values: Values) -> None:
    if option.value is None:
        values[option.key] = True if value is None else _truth(value, shown)
        return
    if value is None:
        if option.is_optional and not (waiting and (waiting[-1].isdecimal() or waiting[-1] == "latest")):
            values[option.key] = True
            return
        if not waiting:
            raise WrongUsageError(f"The option {shown} needs {option.value}")
        value = waiting.pop()
    values[option.key] = value


def _truth(text: str, shown: str) -> bool:
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise WrongUsageError(f"{shown} is {text!r}, which is neither true nor false")
