"""`diagnose`, `repair`, `os-install`, and the `verify` of earlier days that was all three."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from overhaul.dialects.swupd.device.context import Context
from overhaul.dialects.swupd.device.errors import (
    FormatMismatchError,
    NoSpaceError,
    PathNotInManifestError,
    UnknownBundleError,
    VersionMismatchError,
    WrongUsageError,
)
from overhaul.dialects.swupd.device.exits import Exit
from overhaul.dialects.swupd.device.judging import DEFAULT_WHITELIST, Findings, Judge, below
from overhaul.dialects.swupd.device.planning import Content, consolidate
from overhaul.dialects.swupd.device.repository import Bundle, Release
from overhaul.dialects.swupd.manifest import Entry

if TYPE_CHECKING:  # a diagnosis repairs nothing, and a fifth of its time would go into these
    from overhaul.dialects.swupd.device.actions import Actions

_EXCLUSIVE = (
    ("quick", "picky"),
    ("quick", "extra_files_only"),
    ("picky", "extra_files_only"),
    ("bundles", "picky"),
    ("bundles", "extra_files_only"),
)
#: From so many missing files for each bundle on, whole packs are cheaper.
PACKS_FROM = 10
#: Files of this mean size are worth several threads.
_LARGE_BYTES = 64 << 10


@dataclass(frozen=True)
class Expected:
    """What a system should be."""

    release: Release
    bundles: dict[str, Bundle]
    content: Content


def verify(context: Context) -> Exit:
    """Run `swupd verify`: plain it is diagnose, with --fix repair, with --install os-install."""
    if context.is_set("install"):
        context.output.note("`swupd verify --install` is now called `swupd os-install`")
        return _install(context)
    if context.is_set("fix"):
        context.output.note("`swupd verify --fix` is now called `swupd repair`")
        return repair(context)
    context.output.note("`swupd verify` is now called `swupd diagnose`")
    return diagnose(context)


def diagnose(context: Context) -> Exit:
    """Run `swupd diagnose`: 0 when nothing is wrong, 1 otherwise."""
    _check_options(context)
    context.output.plan_steps(1)
    with context.working(changes=False):
        expected = _expected(context)
        context.output.say(f"Diagnosing version {expected.release.version}")
        findings = _look(context, expected)
    for kind, paths in (
        ("Missing file", _names(findings.missing)),
        ("Hash mismatch for file", _names(findings.different)),
        ("File that should be deleted", _names(findings.left_over)),
        ("Extra file", findings.extra),
    ):
        for path in paths:
            shown = _shown(context, path)
            context.output.tell(shown, human=f" -> {kind}: {shown}")
    _sum_up(context, findings)
    context.output.say("Use `swupd repair` to correct these problems" if findings else "Diagnose successful")
    return Exit.NO if findings else Exit.OK


def repair(context: Context) -> Exit:
    """Run `swupd repair`: 0 when everything is right afterwards, 35 when something could not be fixed."""
    _check_options(context)
    context.output.plan_steps(4)
    with context.working():
        expected = _expected(context, repairs=True)
        context.output.say(f"Diagnosing version {expected.release.version}")
        findings = _look(context, expected)
        _sum_up(context, findings)
        if not findings:
            context.output.say("Repair successful")
            return Exit.OK
        failures = put_right(context, expected, [*findings.missing, *findings.different])
        if not failures:
            gone = _names(findings.left_over)
            failures += _remove(context, gone)
        failures += _remove(context, findings.extra)
        actions(context).after([*_names(findings.missing), *_names(findings.different)], always_boot=True)
        if not context.is_set("keepcache"):
            context.cache.forget_objects()
    context.output.say("Repair did not fully succeed" if failures else "Repair successful")
    return Exit.NOT_FIXED if failures else Exit.OK


def os_install(context: Context, words: Sequence[str]) -> Exit:
    """Run `swupd os-install PATH`."""
    if len(words) != 1:
        raise WrongUsageError("os-install needs exactly one path")
    if "path" in context.values:
        raise WrongUsageError("os-install takes its path as an argument and not with --path")
    context.values["path"] = words[0]
    return _install(context)


def _install(context: Context) -> Exit:
    from overhaul.dialects.swupd.device.bundlesets import load_with_includes

    context.output.plan_steps(4)
    root = context.root
    root.mkdir(parents=True, exist_ok=True)
    with context.working():
        wanted = _list(context.text("bundles"))
        repository = context.repository
        version = _version(context) or repository.latest(context.format_name)[0]
        release = repository.release(version)
        _check_format(context, release)
        bundles = load_with_includes(repository, release, wanted, with_optional=not context.is_set("skip_optional"))
        expected = Expected(release, bundles, consolidate(bundles.values()))
        context.output.say(f"Installing OS version {version} ({len(bundles)} bundles)")
        _check_room(context, bundles.values())
        looking = judge(context, expected.bundles.values())
        findings = looking.look(list(expected.content.entries.values()), only_missing=True, progress=context.output)
        if context.is_set("download"):
            fetch(context, expected, findings.missing)
            context.output.say("The installation is downloaded, and nothing was installed.")
            return Exit.OK
        failures = put_right(context, expected, findings.missing, version=version, track=wanted, shows=False)
        actions(context).after([], always_boot=True)
        if not context.is_set("keepcache"):
            context.cache.forget_objects()
    context.output.say("Installation did not fully succeed" if failures else "Installation successful")
    return Exit.NOT_FIXED if failures else Exit.OK


def put_right(
    context: Context,
    expected: Expected,
    entries: Sequence[Entry],
    *,
    version: int | None = None,
    track: Iterable[str] = (),
    shows: bool = True,
) -> int:
    """Bring `entries` into the system; return how many could not be."""
    failed = fetch(context, expected, entries)
    here = [entry for entry in entries if entry.hash not in failed]
    output = context.output
    output.begin("Installing files", len(here), "files")
    applied = context.applier.apply(here, (), version=version, track=track, goes_on=True, advance=output.advance)
    output.end()
    for path in applied.aside:
        output.warn(f"{os.fsdecode(path)} keeps what lay in a directory that had to go and is in no manifest")
    failures = 0
    for entry in entries:
        reason = failed.get(entry.hash) or applied.failed.get(entry.name)
        failures += reason is not None
        shown = _shown(context, entry.name)
        if reason is not None:
            output.note(f"{shown}: {reason}")
        if shows or reason is not None:
            word = "fixed" if reason is None else "not fixed"
            output.tell(f"{shown} -> {word}", human=f" -> {shown} -> {word}")
    return failures


def fetch(context: Context, expected: Expected, entries: Sequence[Entry]) -> dict[str, str]:
    """Bring the objects of `entries` into the cache; return the hashes of those that could not be had, and why."""
    from overhaul.dialects.swupd.device.objects import PackRef, content_limit

    packs: list[PackRef] = []
    if len(entries) > PACKS_FROM * len(expected.bundles):
        packs = [
            PackRef(name, 0, bundle.ref.version, content_limit(bundle))
            for name, bundle in sorted(expected.bundles.items())
        ]
    gathered = context.objects.gather(
        entries,
        packs=packs,
        limit_bytes=max((content_limit(bundle) for bundle in expected.bundles.values()), default=0),
        progress=context.output,
        goes_on=True,
    )
    for reason in gathered.bad_packs.values():
        context.output.warn(f"a pack was of no use: {reason}")
    return gathered.failed


def _remove(context: Context, paths: Sequence[bytes]) -> int:
    if not paths:
        return 0
    applied = context.applier.apply((), paths, goes_on=True)
    for path in paths:
        shown = _shown(context, path)
        word = "not deleted" if path in applied.failed else "deleted"
        context.output.tell(f"{shown} -> {word}", human=f" -> {shown} -> {word}")
    for path in applied.aside:
        context.output.warn(f"{os.fsdecode(path)} keeps what lay in a directory that had to go")
    return len(applied.failed)


def _expected(context: Context, *, repairs: bool = False) -> Expected:
    current = context.system.version()
    version = _version(context) or (context.repository.latest(context.format_name)[0] if _is_latest(context) else 0)
    version = version or current
    may_differ = context.is_set("force") or context.is_set("picky")
    if repairs and version != current and not may_differ:
        raise VersionMismatchError(
            f"Version {version} is not the installed version {current}; pass --force or --picky to repair towards it"
        )
    release = context.repository.release(version)
    if repairs:
        _check_format(context, release)
    named = _list(context.text("bundles"))
    names = named or sorted(context.system.installed())
    unknown = [name for name in names if name not in release.bundles]
    if unknown and not context.is_set("force"):
        raise UnknownBundleError(bundle=unknown[0], version=version)
    known = [name for name in names if name in release.bundles]
    bundles = {
        bundle.ref.name: bundle for bundle in context.repository.bundles(release.bundles[name] for name in known)
    }
    return Expected(release, bundles, consolidate(bundles.values()))


def _look(context: Context, expected: Expected) -> Findings:
    content = expected.content.entries
    looking = judge(context, expected.bundles.values())
    findings = Findings()
    if not context.is_set("extra_files_only"):
        entries: Sequence[Entry] = list(content.values())
        place = context.text("file")
        if place is not None:
            entries = below(entries, place)
            if not entries:
                raise PathNotInManifestError(path=place)
        findings = looking.look(entries, only_missing=context.is_set("quick"), progress=context.output)
    if context.is_set("picky") or context.is_set("extra_files_only"):
        findings.extra = looking.unknown(
            content.values(),
            tree=context.text("picky_tree") or context.text("file") or "/usr",
            whitelist=DEFAULT_WHITELIST if (given := context.text("picky_whitelist")) is None else given,
        )
    findings.missing.sort(key=lambda entry: entry.name)
    findings.different.sort(key=lambda entry: entry.name)
    return findings


def judge(context: Context, bundles: Iterable[Bundle]) -> Judge:
    """Return what looks at the context's root for the content of `bundles`."""
    manifests = [bundle.manifest for bundle in bundles]
    size = sum(manifest.content_size for manifest in manifests)
    count = sum(len(manifest.entries) for manifest in manifests)
    # Hashing leaves the interpreter to other threads; for small files the changing to and fro costs more than it gains.
    workers = min(4, len(os.sched_getaffinity(0))) if size > count * _LARGE_BYTES else 1
    return Judge(
        context.root,
        context.classes.leaves_alone,
        hashes_paths=context.hashes_paths,
        with_xattrs=context.with_xattrs,
        workers=workers,
    )


def _check_options(context: Context) -> None:
    for first, second in _EXCLUSIVE:
        if first in context.values and second in context.values:
            raise WrongUsageError(f"--{first.replace('_', '-')} and --{second.replace('_', '-')} exclude each other")


def _check_format(context: Context, release: Release) -> None:
    ours = context.format_name
    if ours not in {"staging", str(release.format)} and not context.is_set("force"):
        raise FormatMismatchError(ours=ours, theirs=release.format)


def _check_room(context: Context, bundles: Iterable[Bundle]) -> None:
    if context.is_set("skip_diskspace_check"):
        return
    needed = sum(bundle.manifest.content_size for bundle in bundles)
    status = os.statvfs(context.root)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise NoSpaceError(place=context.root, needed_bytes=needed, free_bytes=free)


def _version(context: Context) -> int:
    """Return the version that was asked for by number, else 0."""
    return 0 if context.text("version") in {None, "latest"} else context.number("version", 0, smallest=1)


def _is_latest(context: Context) -> bool:
    return context.text("version") == "latest"


def _sum_up(context: Context, findings: Findings) -> None:
    output = context.output
    output.say(f"Inspected {findings.checked} files")
    for count, text in (
        (len(findings.missing), "missing"),
        (len(findings.different), "with another content or other rights than they should have"),
        (len(findings.left_over), "that should be deleted"),
        (len(findings.extra), "that no installed bundle has"),
    ):
        if count:
            output.say(f"  {count} files {text}")


def actions(context: Context) -> "Actions":
    """Return what follows changes of the context's root."""
    from overhaul.dialects.swupd.device.actions import Actions

    return Actions(
        context.root,
        context.output,
        has_scripts=not context.is_set("no_scripts") and not context.name,
        updates_boot=not context.is_set("no_boot_update"),
        waits=context.is_set("wait_for_scripts"),
    )


def _names(entries: Iterable[Entry]) -> list[bytes]:
    return [entry.name for entry in entries]


def _list(text: str | None) -> list[str]:
    return [name for name in (text or "").split(",") if name]


def _shown(context: Context, path: bytes) -> str:
    root = "" if context.root == Path("/") else str(context.root)
    return root + os.fsdecode(path)
