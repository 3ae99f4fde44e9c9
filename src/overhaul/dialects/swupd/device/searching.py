"""`search` and `search-file`: which bundle has a file, also of bundles that are not installed.

All manifests of a version make one index, a line a path, grouped by bundle; it is searched as bytes, which takes
milliseconds where parsing every manifest again takes seconds. It lies in the cache under the version's own list of
bundles, so that it can neither be stale nor mistaken for another repository's.
"""

import hashlib
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.swupd.device.context import Context
from overhaul.dialects.swupd.device.errors import WrongUsageError
from overhaul.dialects.swupd.device.exits import Exit
from overhaul.dialects.swupd.device.repository import Release
from overhaul.host.files import replacing

#: What begins the index: its grammar's number.
_MAGIC = b"swupd-index 1\n"
_SEARCH_PROGRAM = Path("usr/bin/swupd-search")


@dataclass(frozen=True)
class Found:
    """A bundle and those of its paths that match."""

    bundle: str
    size_bytes: int
    paths: tuple[str, ...]


def search(context: Context, words: Sequence[str]) -> Exit:
    """Run `swupd search`: the system's own program where it is installed, else a search by file."""
    program = context.root / _SEARCH_PROGRAM
    if str(context.root) == "/" and os.access(program, os.X_OK):
        os.execv(program, [str(program), *words])  # noqa: S606 - replaces us, without a shell
    return search_file(context, words)


def search_file(context: Context, words: Sequence[str]) -> Exit:
    """Run `swupd search-file TERM`."""
    is_init = context.is_set("init")
    if len(words) != 1 and not (is_init and not words):
        raise WrongUsageError("search-file needs exactly one term")
    if context.is_set("library") and context.is_set("binary"):
        raise WrongUsageError("--library and --binary exclude each other")
    with context.working(changes=False):
        version = context.system.version()
        if context.text("version") == "latest":
            version = context.repository.latest(context.format_name)[0]
        elif context.text("version") is not None:
            version = context.number("version", 0, smallest=1)
        index = build_index(context, context.repository.release(version))
    if not words:
        context.output.say("The index is ready")
        return Exit.OK
    found = list(_search(index, _pattern(context, words[0])))
    order = context.text("order") or "alpha"
    if order not in {"alpha", "size"}:
        raise WrongUsageError(f"--order is {order!r}, which is neither alpha nor size")
    found.sort(key=lambda one: (one.size_bytes if order == "size" else 0, one.bundle))
    installed = context.system.installed()
    for one in found[: context.number("top", 1 << 30)]:
        _show(context, one, is_installed=one.bundle in installed)
    if not found:
        context.output.say("Nothing was found")
        return Exit.NO
    return Exit.OK


def build_index(context: Context, release: Release) -> Path:
    """Return the index of a version's files, made when there is none."""
    name = hashlib.sha256(repr(sorted(release.bundles.items())).encode()).hexdigest()
    path = context.cache.search / name
    if path.exists():
        return path
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    refs = [release.bundles[bundle] for bundle in sorted(release.bundles)]
    output = context.output
    output.begin("Manifests", len(refs), "bundles")
    with replacing(path) as stream:
        stream.write(_MAGIC)
        # A few at a time, so that the memory does not grow with the number of bundles.
        for start in range(0, len(refs), 32):
            for bundle in context.repository.bundles(refs[start : start + 32]):
                stream.write(b"\0%s\t%d\n" % (bundle.ref.name.encode(), bundle.manifest.content_size))
                paths = sorted(entry.name for entry in bundle.entries if entry.is_present and entry.kind != "D")
                stream.writelines(path + b"\n" for path in paths)
                output.advance(1)
    output.end()
    for other in path.parent.iterdir():
        if other != path:
            other.unlink(missing_ok=True)
    return path


def _pattern(context: Context, term: str) -> re.Pattern[bytes]:
    body = os.fsencode(term)
    if context.is_set("regexp"):
        try:
            re.compile(body)
        except re.error as error:
            raise WrongUsageError(f"{term!r} is no regular expression ({error})") from error
    else:
        body = re.escape(body)
    front = (
        b"/usr/lib[^\n]*?" if context.is_set("library") else b"/usr/bin/[^\n]*?" if context.is_set("binary") else b""
    )
    if not front:
        return re.compile(b"^/?[^\n\0]*?(?:" + body + b")[^\n]*$", re.MULTILINE)
    return re.compile(b"^" + front + b"(?:" + body + b")[^\n]*$", re.MULTILINE)


def _search(index: Path, pattern: re.Pattern[bytes]) -> Iterator[Found]:
    with index.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = data.find(b"\0", len(_MAGIC) - 1)
        while position >= 0:
            begin = data.find(b"\n", position) + 1
            end = data.find(b"\0", begin)
            head = data[position + 1 : begin - 1].split(b"\t")
            stop = len(data) if end < 0 else end
            paths = [os.fsdecode(found[0]) for found in pattern.finditer(data, begin, stop) if found[0][:1] == b"/"]
            if paths:
                yield Found(head[0].decode(), int(head[1]), tuple(paths))
            position = end


def _show(context: Context, one: Found, *, is_installed: bool) -> None:
    output = context.output
    if context.is_set("csv"):
        for path in one.paths:
            output.tell(f"{path},{one.bundle},{one.size_bytes},{'installed' if is_installed else ''}")
        return
    state = "  [installed]" if is_installed else ""
    output.tell(f"[{one.bundle}]", human=f"Bundle {one.bundle}  ({one.size_bytes} bytes){state}")
    for path in one.paths:
        output.tell(path, human=f"  {path}")
