"""server.ini of the old server: where a staging directory keeps its parts, and what is left out.

    [Server]
    imagebase = /srv/update/image/      # root file systems, instead of image/
    outputdir = /srv/update/www/        # what is served, instead of www/
    emptydir = /srv/update/empty/       # accepted; nothing empty is needed here
    [Debuginfo]
    banned = true                       # leave debugging files out,
    lib = /usr/lib/debug/               # which are those below these two
    src = /usr/src/debug/

Relative paths begin at the staging directory.
"""

import configparser
import os
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.swupd.paths import DEBUG_DIRECTORIES
from overhaul.errors import InputError

NAME = "server.ini"
_MAX_BYTES = 1 << 20
_KNOWN = {"Server": {"imagebase", "outputdir", "emptydir"}, "Debuginfo": {"banned", "lib", "src"}}


class ServerIniError(InputError):
    """A server.ini that cannot be followed."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be followed: {reason}.")


@dataclass(frozen=True, kw_only=True)
class ServerIni:
    """What stands in it, or what holds without one."""

    images: Path
    web: Path
    debug_banned: bool = False
    #: Absolute paths that end in a slash; only what is below them is left out.
    debug_directories: tuple[bytes, ...] = DEBUG_DIRECTORIES


def read_server_ini(directory: Path) -> ServerIni:
    """Return what the server.ini of a staging directory says.

    Raises:
        ServerIniError: It cannot be read, or says something unknown.
    """
    path = directory / NAME
    if not path.is_file():
        return ServerIni(images=directory / "image", web=directory / "www")
    if path.stat().st_size > _MAX_BYTES:
        raise ServerIniError(path=path, reason=f"it has more than {_MAX_BYTES} bytes")
    parser = configparser.ConfigParser(interpolation=None, default_section="\0", strict=True)
    try:
        parser.read_string(path.read_text(), source=str(path))
        for section in parser.sections():
            unknown = sorted(set(parser[section]) - _KNOWN.get(section, set()))
            if section not in _KNOWN or unknown:
                what = f"the section {section!r}" if section not in _KNOWN else f"{unknown[0]!r} in {section!r}"
                raise ServerIniError(path=path, reason=f"{what} is not known")
        banned = parser.getboolean("Debuginfo", "banned", fallback=False)
    except (configparser.Error, ValueError, OSError) as error:
        raise ServerIniError(path=path, reason=" ".join(str(error).split()).rstrip(".")) from error
    directories = [
        os.fsencode(parser.get("Debuginfo", key, fallback=os.fsdecode(usual)))
        for key, usual in zip(("lib", "src"), DEBUG_DIRECTORIES, strict=True)
    ]
    for one in directories:
        if not one.strip(b"/") or not one.startswith(b"/"):
            raise ServerIniError(path=path, reason=f"{os.fsdecode(one)!r} in 'Debuginfo' is no absolute directory")
    return ServerIni(
        images=directory / parser.get("Server", "imagebase", fallback="image"),
        web=directory / parser.get("Server", "outputdir", fallback="www"),
        debug_banned=banned,
        debug_directories=tuple(one.rstrip(b"/") + b"/" for one in directories),
    )
