"""INI files as this system writes them, read for server and client alike.

Lists are divided by blanks in the server's files and by semicolons in the client's. Keys do not tell upper from lower
case, sections do. `%` stands for itself.
"""

import configparser
from collections.abc import Sequence
from pathlib import Path

from overhaul.errors import OperatorError

_TRUE = frozenset({"1", "yes", "true", "on"})
_FALSE = frozenset({"0", "no", "false", "off"})


class UnusableConfigurationError(OperatorError):
    """A configuration file that cannot be used."""

    exit_code = 1

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be used: {reason}.")


class IniFile:
    """One INI file, whose options are asked for by section and name."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._parser = configparser.ConfigParser(interpolation=None, default_section="\0")
        try:
            self._parser.read_string(text, source=str(path))
        except configparser.Error as error:
            raise self.refusal(str(error).replace("\n", " ").rstrip(".")) from error

    @classmethod
    def read(cls, path: Path) -> "IniFile":
        """Return the file at `path`.

        Raises:
            UnusableConfigurationError: It is absent, no text, or not in this format.
        """
        try:
            return cls(path, path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UnusableConfigurationError(path=path, reason=error.strerror or str(error)) from error
        except UnicodeError as error:
            raise UnusableConfigurationError(path=path, reason="it is no text") from error

    def refusal(self, reason: str) -> UnusableConfigurationError:
        """Return the error to raise for this file."""
        return UnusableConfigurationError(path=self.path, reason=reason)

    @property
    def sections(self) -> tuple[str, ...]:
        """The names of all sections, in the order they are written."""
        return tuple(self._parser.sections())

    def options(self, section: str) -> dict[str, str]:
        """Return the options of a section by lower-case name; empty when there is none."""
        return dict(self._parser.items(section)) if self._parser.has_section(section) else {}

    def has(self, section: str, option: str) -> bool:
        """Whether the option is written, even when empty."""
        return self._parser.has_option(section, option)

    def text(self, section: str, option: str, default: str = "") -> str:
        """Return an option's text, or `default` where it is not written."""
        return self._parser.get(section, option, fallback=default).strip()

    def needed(self, section: str, option: str) -> str:
        """Return an option that must be there and must not be empty."""
        value = self.text(section, option)
        if not value:
            raise self.refusal(f"[{section}] {option} is missing")
        return value

    def words(self, section: str, option: str) -> tuple[str, ...]:
        """Return a list divided by blanks."""
        return tuple(self.text(section, option).split())

    def parts(self, section: str, option: str) -> tuple[str, ...]:
        """Return a list divided by semicolons."""
        return tuple(part.strip() for part in self.text(section, option).split(";") if part.strip())

    def truth(self, section: str, option: str, *, default: bool) -> bool:
        """Return a yes or no."""
        if not self.has(section, option):
            return default
        value = self.text(section, option).lower()
        if value not in _TRUE | _FALSE:
            raise self.refusal(f"[{section}] {option} is {value!r}, not yes or no")
        return value in _TRUE

    def number(self, section: str, option: str, *, default: int, lowest: int, highest: int) -> int:
        """Return a whole number between two bounds, both included."""
        value = self.text(section, option) if self.has(section, option) else str(default)
        if not value.isascii() or not value.isdigit() or len(value) > 18 or not lowest <= int(value) <= highest:
            raise self.refusal(f"[{section}] {option} is {value!r}, not a number from {lowest} to {highest}")
        return int(value)

    def check_known(self, section: str, known: Sequence[str]) -> None:
        """Refuse options that nobody knows, so that a misspelt one is found; for sections of our own."""
        strange = sorted(set(self.options(section)) - {name.lower() for name in known})
        if strange:
            raise self.refusal(f"[{section}] has the unknown option {strange[0]!r}")
