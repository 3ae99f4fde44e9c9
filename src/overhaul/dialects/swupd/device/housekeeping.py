"""The small commands: `info`, `mirror`, `clean`, `hashdump` and `autoupdate`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from overhaul.dialects.swupd.device.context import Context
from overhaul.dialects.swupd.device.errors import ClientError, SubprocessError, WrongUsageError
from overhaul.dialects.swupd.device.exits import Exit
from overhaul.dialects.swupd.hash import hash_path
from overhaul.errors import OverhaulError

_UNITS = ("swupd-update.service", "swupd-update.timer")
#: Manifests of so many versions are recent.
_RECENT_VERSIONS = 2


def info(context: Context) -> Exit:
    """Run `swupd info`."""
    output = context.output
    version = context.system.version()
    output.say(f"Distribution:      {context.system.pretty_name()}")
    output.tell(str(version), human=f"Installed version: {version}")
    output.say(f"Version URL:       {context.version_url}")
    output.say(f"Content URL:       {context.content_url}")
    return Exit.OK


def mirror(context: Context) -> Exit:
    """Run `swupd mirror`."""
    from overhaul.dialects.swupd.device.fetching import check_url

    url = context.text("set")
    if url is not None and context.is_set("unset"):
        raise WrongUsageError("--set and --unset exclude each other")
    if url is not None:
        checked = check_url(url, allow_http=context.is_set("allow_insecure_http"))
        context.system.set_mirror(checked, checked)
        context.output.say("Mirror url set")
    elif context.is_set("unset"):
        context.system.unset_mirror()
        context.output.say("Mirror url configuration removed")
    content, version = context.system.content_url(), context.system.version_url()
    context.output.tell(version, human=f"Version URL: {version}")
    if content != version:
        context.output.tell(content, human=f"Content URL: {content}")
    else:
        context.output.say(f"Content URL: {content}")
    return Exit.OK


def clean(context: Context) -> Exit:
    """Run `swupd clean`: what only saves a download goes, what finishes an interrupted run stays."""
    is_dry = context.is_set("dry_run")
    with context.working():
        freed = 0
        for path in _to_clean(context):
            freed += os.lstat(path).st_size
            if is_dry:
                context.output.tell(str(path))
            elif path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
    verb = "would be" if is_dry else "are"
    context.output.say(f"{freed} bytes {verb} freed")
    return Exit.OK


def hashdump(context: Context, words: Sequence[str]) -> Exit:
    """Run `swupd hashdump PATH`."""
    if len(words) != 1:
        raise WrongUsageError("hashdump needs exactly one path")
    path = Path(words[0])
    if "path" in context.values:
        path = context.root / words[0].lstrip("/")
    name = os.fsencode(words[0]) if context.text("format") == "3" else None
    with_xattrs = context.with_xattrs and not context.is_set("no_xattrs")
    try:
        digest = hash_path(path, path=name, with_xattrs=with_xattrs)
    except OSError as error:
        raise SubprocessError(reason=f"{path} cannot be read ({error.strerror})") from error
    context.output.tell(digest)
    return Exit.OK


def autoupdate(context: Context) -> Exit:
    """Run `swupd autoupdate`: 0 enabled, 1 disabled, 28 unknown."""
    from overhaul.host.processes import run

    if context.is_set("enable") and context.is_set("disable"):
        raise WrongUsageError("--enable and --disable exclude each other")
    try:
        if context.is_set("enable"):
            run(["systemctl", "unmask", "--now", *_UNITS])
            run(["systemctl", "restart", _UNITS[1]])
        elif context.is_set("disable"):
            run(["systemctl", "mask", "--now", *_UNITS])
        else:
            return _report(context)
    except (OverhaulError, OSError) as error:
        raise SubprocessError(reason=f"systemctl did not do it ({error})") from error
    return Exit.OK


def _report(context: Context) -> Exit:
    from overhaul.host.processes import ProgramFailedError, run

    try:
        run(["systemctl", "is-active", _UNITS[1]])
    except ProgramFailedError as error:
        # 3 and 4 are the answers "no"; anything else means that systemd itself cannot be asked.
        if error.reason in {"ended with status 3", "ended with status 4"}:
            context.output.say("Disabled")
            return Exit.NO
        raise
    context.output.say("Enabled")
    return Exit.OK


def _to_clean(context: Context) -> Iterator[Path]:
    cache = context.cache
    for place in (cache.staged, cache.delta, cache.download, cache.temp):
        yield from _inside(place)
    yield from sorted(cache.directory.glob("pack-*.tar"))
    versions = sorted(
        (int(path.name) for path in (cache.directory / "manifest").iterdir() if path.name.isdecimal()), reverse=True
    )
    keep: set[int] = set() if context.is_set("all") else _kept(context, versions)
    for version in versions:
        if version not in keep:
            directory = cache.directory / "manifest" / str(version)
            yield from _inside(directory)
            yield directory
    if context.is_set("all"):
        yield from _inside(cache.search)


def _kept(context: Context, versions: Sequence[int]) -> set[int]:
    """Return the versions whose manifests are in use: the newest, and all that the installed version names."""
    keep = set(versions[:_RECENT_VERSIONS])
    try:
        release = context.repository.release(context.system.version())
    except (ClientError, OverhaulError):
        return set(versions)
    return keep | {release.version} | {ref.version for ref in release.bundles.values()}


def _inside(directory: Path) -> Iterator[Path]:
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _inside(path)
        yield path
