"""Key files as GLib writes them: repository configurations, remotes, origins of deployments.

Comments and unknown keys survive reading and writing, in their order: files here belong to the device's owner and to
other programs as well.
"""

from collections.abc import Mapping
from pathlib import Path

from overhaul.errors import DeviceError
from overhaul.host.files import replace_bytes

#: No honest one comes near.
_LIMIT_BYTES = 1 << 20
_ESCAPES = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


class KeyFileError(DeviceError):
    """A key file of this device that cannot be read."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} is no usable key file ({reason}); mend it and try again.")


class KeyFile:
    """Groups of keys with text values."""

    def __init__(self, text: str = "") -> None:
        #: Every line as it came; values that are set replace theirs.
        self._lines = text.splitlines()

    def groups(self) -> tuple[str, ...]:
        """Return the names of all groups in their order, each once."""
        names = (line.strip()[1:-1] for line in self._lines if _is_header(line))
        return tuple(dict.fromkeys(names))

    def items(self, group: str) -> Mapping[str, str]:
        """Return the keys of a group with their values; the last of two equal keys counts, as with GLib."""
        found = {}
        current = None
        for line in self._lines:
            if _is_header(line):
                current = line.strip()[1:-1]
            elif current == group and (parts := _pair(line)) is not None:
                found[parts[0]] = _unescaped(parts[1])
        return found

    def get(self, group: str, key: str) -> str | None:
        """Return a value, or None when it is not set."""
        return self.items(group).get(key)

    def set(self, group: str, key: str, value: str) -> None:
        """Set a value; a group that is not there is added at the end."""
        line = f"{key}={_escaped(value)}"
        current = None
        last_of_group = None
        for position, old in enumerate(self._lines):
            if _is_header(old):
                current = old.strip()[1:-1]
            if current == group:
                parts = _pair(old)
                if parts is not None and parts[0] == key:
                    self._lines[position] = line
                    return
                if old.strip():
                    last_of_group = position
        if last_of_group is None:
            self._lines += [*([""] if self._lines else []), f"[{group}]", line]
        else:
            self._lines.insert(last_of_group + 1, line)

    def text(self) -> str:
        """Return the file's text."""
        return "".join(f"{line}\n" for line in self._lines)


def read_key_file(path: Path) -> KeyFile:
    """Return the key file `path`.

    Raises:
        KeyFileError: It is not there, no text, or far too big.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise KeyFileError(path=path, reason=error.strerror or str(error)) from error
    if len(data) > _LIMIT_BYTES:
        raise KeyFileError(path=path, reason=f"it is larger than {_LIMIT_BYTES} bytes")
    try:
        return KeyFile(data.decode())
    except UnicodeDecodeError as error:
        raise KeyFileError(path=path, reason="it is no UTF-8 text") from error


def write_key_file(path: Path, content: KeyFile) -> None:
    """Replace the key file `path` durably."""
    replace_bytes(path, content.text().encode())


def boolean(value: str | None, *, default: bool) -> bool:
    """Return what GLib reads as a boolean; anything else is the default."""
    return {"true": True, "1": True, "false": False, "0": False}.get((value or "").strip(), default)


def assignments(text: str) -> dict[str, str]:
    """Return the assignments of an os-release or similar file."""
    pairs = (line.partition("=") for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, equals, value in pairs if equals}


def _is_header(line: str) -> bool:
    text = line.strip()
    return text.startswith("[") and text.endswith("]")


def _pair(line: str) -> tuple[str, str] | None:
    if line.lstrip().startswith("#") or "=" not in line:
        return None
    key, _, value = line.partition("=")
    return key.strip(), value.strip()


def _escaped(value: str) -> str:
    text = value.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return "\\s" + text[1:] if text.startswith(" ") else text


def _unescaped(value: str) -> str:
    if "\\" not in value:
        return value
    parts = []
    characters = iter(value)
    for character in characters:
        if character == "\\":
            following = next(characters, "")
            parts.append(_ESCAPES.get(following, "\\" + following))
        else:
            parts.append(character)
    return "".join(parts)
