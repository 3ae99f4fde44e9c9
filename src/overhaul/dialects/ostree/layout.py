"""Where everything lies in an OSTree repository, which names refs have, and what may be served and kept.

    config  summary  summary.sig
    refs/heads/BRANCH  refs/remotes/REMOTE/BRANCH      64 hexadecimal digits and a newline
    objects/XX/REST.KIND                               content-named
    deltas/FF/REST-TO/{superblock,0,1,...}             FF, REST, TO in modified base64; without TO from nothing
    delta-indexes/TT/REST.index
    tmp/  state/  .lock  REMOTE.trustedkeys.gpg        of the repository itself, never served

Pure: paths are strings relative to the repository.
"""

import base64
import enum
import re
from dataclasses import dataclass

from overhaul.dialects.ostree.errors import BadRefNameError, MalformedOstreeDataError
from overhaul.dialects.ostree.objects import CHECKSUM_SIZE, OBJECT_TYPE_OF_EXTENSION, ObjectName, parse_checksum

CONFIG = "config"
SUMMARY = "summary"
SUMMARY_SIGNATURE = "summary.sig"
LOCK = ".lock"
HEADS = "refs/heads"
DELTA_INDEXES = "delta-indexes"
#: Directories of an empty repository, as `ostree init` makes them.
DIRECTORIES = ("extensions", "objects", "refs/heads", "refs/mirrors", "refs/remotes", "state", "tmp/cache")

_REF = re.compile(r"[A-Za-z0-9_][-._A-Za-z0-9]*(/[A-Za-z0-9_][-._A-Za-z0-9]*)*", re.ASCII)
REMOTE_NAME = re.compile(r"[A-Za-z0-9_][-._A-Za-z0-9]*", re.ASCII)
_OBJECT_PATH = re.compile(r"objects/([0-9a-f]{2})/([0-9a-f]{62})\.([a-z-]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Refspec:
    """A branch, of a remote or of this repository."""

    branch: str
    remote: str | None = None

    def __str__(self) -> str:
        return self.branch if self.remote is None else f"{self.remote}:{self.branch}"


def parse_refspec(text: str) -> Refspec:
    """Return what `REMOTE:BRANCH` or `BRANCH` means.

    Raises:
        BadRefNameError: It is neither.
    """
    remote, colon, branch = text.rpartition(":")
    if colon and not REMOTE_NAME.fullmatch(remote):
        raise BadRefNameError(name=text)
    return Refspec(check_ref(branch), remote if colon else None)


def check_ref(name: str) -> str:
    """Return `name` when it is a branch name.

    Raises:
        BadRefNameError: It is none.
    """
    if not _REF.fullmatch(name):
        raise BadRefNameError(name=name)
    return name


def ref_path(refspec: Refspec) -> str:
    """Return the path of the file that holds a ref."""
    place = HEADS if refspec.remote is None else f"refs/remotes/{refspec.remote}"
    return f"{place}/{refspec.branch}"


def encode_ref(commit: bytes) -> bytes:
    """Return what a ref's file holds."""
    return commit.hex().encode() + b"\n"


def decode_ref(data: bytes, *, what: str) -> bytes:
    """Return the commit a ref's file names.

    Raises:
        MalformedOstreeDataError: It names none.
    """
    return parse_checksum(data.decode("ascii", "replace").rstrip("\n"), what=what)


def object_path(name: ObjectName, *, bare: bool = False) -> str:
    """Return the path of an object; in `bare` repositories files are stored as they are."""
    digits = name.checksum.hex()
    extension = "file" if bare and name.type.extension == "filez" else name.type.extension
    return f"objects/{digits[:2]}/{digits[2:]}.{extension}"


def parse_object_path(path: str) -> ObjectName | None:
    """Return the object of an archive repository that lies at `path`, or None when none can lie there."""
    found = _OBJECT_PATH.fullmatch(path)
    if found is None or found[3] not in OBJECT_TYPE_OF_EXTENSION:
        return None
    return ObjectName(OBJECT_TYPE_OF_EXTENSION[found[3]], bytes.fromhex(found[1] + found[2]))


def delta_name(source: bytes | None, target: bytes) -> str:
    """Return how the summary and indexes call a delta: `FROM-TO` or `TO`, in hexadecimal digits."""
    return target.hex() if source is None else f"{source.hex()}-{target.hex()}"


def parse_delta_name(name: str) -> tuple[bytes | None, bytes]:
    """Return source and target of a delta called `FROM-TO` or `TO`.

    Raises:
        MalformedOstreeDataError: It is called otherwise.
    """
    source, dash, target = name.rpartition("-")
    what = "name of a static delta"
    return (parse_checksum(source, what=what) if dash else None), parse_checksum(target, what=what)


def delta_directory(source: bytes | None, target: bytes) -> str:
    """Return the directory of a delta; `source` is None for one that needs nothing."""
    first = _short(target if source is None else source)
    rest = "" if source is None else "-" + _short(target)
    return f"deltas/{first[:2]}/{first[2:]}{rest}"


def parse_delta_directory(path: str) -> tuple[bytes | None, bytes] | None:
    """Return source and target of the delta whose directory is `path`, or None when it is none's."""
    top, _, rest = path.partition("/")
    if top != "deltas":
        return None
    names = [_long(part) for part in rest.replace("/", "", 1).split("-")]
    match names:
        case [bytes() as target]:
            return None, target
        case [bytes() as source, bytes() as target]:
            return source, target
        case _:
            return None


def delta_index_path(target: bytes) -> str:
    """Return the path of the index of all deltas to a commit."""
    short = _short(target)
    return f"{DELTA_INDEXES}/{short[:2]}/{short[2:]}.index"


def _short(checksum: bytes) -> str:
    return base64.b64encode(checksum, b"+_").decode().rstrip("=")


def _long(short: str) -> bytes | None:
    try:
        checksum = base64.b64decode(short + "=", b"+_", validate=True)
    except ValueError:
        return None
    return checksum if len(checksum) == CHECKSUM_SIZE and _short(checksum) == short else None


class CacheRule(enum.Enum):
    """What a server says about a path; the value is `Cache-Control`."""

    #: Its name is that of its content, or it never changes under its name.
    IMMUTABLE = "public, max-age=31536000, immutable"
    #: Asked for again each time; validators make that cheap.
    REVALIDATE = "no-cache"
    #: Not of the world's business: temporary files, locks, keys. Answered with 404.
    HIDDEN = "no-store"


def cache_rule(path: str) -> CacheRule:
    """Return what a server says about `path`, which is relative to the repository.

    Detached metadata (signatures) and the superblock of a delta can be written again under their names: a commit
    can be signed once more, and a delta made anew has other parts. Parts therefore are asked for again, too.
    """
    top, _, rest = path.partition("/")
    if not rest:
        return CacheRule.REVALIDATE if path in (CONFIG, SUMMARY, SUMMARY_SIGNATURE) else CacheRule.HIDDEN
    if any(part.startswith(".") for part in path.split("/")):
        return CacheRule.HIDDEN
    if top == "objects":
        if path.endswith(".commitmeta"):
            return CacheRule.REVALIDATE
        return CacheRule.IMMUTABLE if parse_object_path(path) else CacheRule.HIDDEN
    return CacheRule.REVALIDATE if top in ("refs", "deltas", DELTA_INDEXES) else CacheRule.HIDDEN


def encode_config(sections: dict[str, dict[str, str]]) -> bytes:
    """Return a key file, the form of `config` and of origin files."""
    lines = []
    for section, keys in sections.items():
        lines.append(f"[{section}]")
        lines.extend(f"{key}={value}" for key, value in keys.items())
        lines.append("")
    return "\n".join(lines).encode()


def decode_config(data: bytes, *, what: str) -> dict[str, dict[str, str]]:
    """Return the sections of a key file; values are not unescaped, comments are dropped.

    Raises:
        MalformedOstreeDataError: It is none.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise MalformedOstreeDataError(what=what, reason="it is no text") from error
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] | None = None
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            current = sections.setdefault(line[1:-1], {})
            continue
        key, assigned, value = line.partition("=")
        if not assigned or current is None:
            raise MalformedOstreeDataError(what=what, reason=f"the line {line[:80]!r} is neither section nor key")
        current[key.strip()] = value.strip()
    return sections
