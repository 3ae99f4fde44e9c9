"""`bundle-add`, `bundle-remove`, `bundle-list` and `bundle-info`."""

import os
from collections.abc import Iterable, Mapping, Sequence

from overhaul.dialects.swupd.device.bundlesets import closure, dependents, load_with_includes, orphans
from overhaul.dialects.swupd.device.context import Context
from overhaul.dialects.swupd.device.errors import (
    ClientError,
    NoSpaceError,
    NotInstalledError,
    RequiredBundleError,
    UnknownBundleError,
    WrongUsageError,
)
from overhaul.dialects.swupd.device.exits import Exit
from overhaul.dialects.swupd.device.planning import changes_to_drop, consolidate
from overhaul.dialects.swupd.device.repository import Bundle, Release
from overhaul.dialects.swupd.device.verifying import Expected, actions, judge, put_right
from overhaul.dialects.swupd.names import CORE_BUNDLE


def bundle_add(context: Context, words: Sequence[str]) -> Exit:
    """Run `swupd bundle-add BUNDLE…`."""
    if not words:
        raise WrongUsageError("bundle-add needs at least one bundle")
    aliases = context.system.aliases()
    names = [name for word in words for name in aliases.get(word, (word,))]
    output = context.output
    output.plan_steps(4)
    with context.working():
        release = context.repository.release(context.system.version())
        installed = context.system.installed()
        known = [name for name in names if name in release.bundles]
        code: ClientError | None = None
        for name in names:
            if name not in release.bundles:
                code = UnknownBundleError(bundle=name, version=release.version)
                output.warn(str(code))
            elif name in installed:
                output.warn(f"bundle {name} is already installed")
            elif release.bundles[name].is_experimental:
                output.warn(f"bundle {name} is experimental")
        with_optional = not context.is_set("skip_optional")
        bundles = load_with_includes(context.repository, release, known, with_optional=with_optional)
        new = {name: bundle for name, bundle in bundles.items() if name not in installed}
        if new:
            _check_room(context, new.values())
            expected = Expected(release, new, consolidate(new.values()))
            findings = judge(context, new.values()).look(
                list(expected.content.entries.values()), only_missing=False, progress=output
            )
            missing = [*findings.missing, *findings.different]
            failures = put_right(context, expected, missing, track=known, shows=False)
            if failures:
                return Exit.CANNOT_CREATE
            actions(context).after([entry.name for entry in missing])
            if not context.is_set("keepcache"):
                context.cache.forget_objects()
        for name in known:
            context.data.track(name)
    if new:
        added = [name for name in known if name in new]
        pulled = sorted(name for name in new if name not in known)
        output.say(f"Successfully installed {len(added)} bundle{'s' if len(added) != 1 else ''}")
        if pulled:
            output.say(f"{len(pulled)} more came with them: {', '.join(pulled)}")
    return Exit.OK if code is None else code.status


def bundle_remove(context: Context, words: Sequence[str]) -> Exit:
    """Run `swupd bundle-remove BUNDLE…`."""
    takes_orphans = context.is_set("orphans")
    if takes_orphans and (context.is_set("force") or context.is_set("recursive")):
        raise WrongUsageError("--orphans excludes --force and --recursive")
    if takes_orphans == bool(words):
        raise WrongUsageError("bundle-remove needs either bundles or --orphans")
    output = context.output
    output.plan_steps(2)
    with context.working():
        release = context.repository.release(context.system.version())
        loaded = _load_installed(context, release)
        includes = _includes(loaded)
        tracked = _tracked(context, includes)
        if takes_orphans:
            gone = orphans(tracked, includes)
            if not gone:
                output.say("No bundle is left over")
                return Exit.OK
        else:
            gone = _to_remove(context, release, words, includes, tracked)
        kept = consolidate(bundle for name, bundle in loaded.items() if name not in gone)
        dropped = consolidate(bundle for name, bundle in loaded.items() if name in gone)
        changes = changes_to_drop(dropped, kept, leaves_alone=context.classes.leaves_alone)
        if not context.data.tracked():
            # Nobody kept count so far, which means that all were added by name; from now on the count is kept.
            for name in tracked - gone:
                context.data.track(name)
        applied = context.applier.apply((), [entry.name for entry in changes.remove], untrack=gone)
        context.report(applied)
        actions(context).after([entry.name for entry in changes.remove])
    if applied.failed:
        return Exit.CANNOT_REMOVE
    output.say(f"Successfully removed {len(gone)} bundle{'s' if len(gone) != 1 else ''}: {', '.join(sorted(gone))}")
    return Exit.OK


def bundle_list(context: Context) -> Exit:
    """Run `swupd bundle-list`."""
    has_status, has_all = context.is_set("status"), context.is_set("all")
    has_dep, deps = context.text("has_dep"), context.text("deps")
    if has_status and (has_dep or deps):
        raise WrongUsageError("--status excludes --has-dep and --deps")
    if context.is_set("orphans") and (has_status or has_all or has_dep or deps):
        raise WrongUsageError("--orphans stands alone")
    output = context.output
    installed = context.system.installed()
    if not (has_all or has_dep or deps or has_status or context.is_set("orphans")):
        output.say("Installed bundles:")
        for name in sorted(installed):
            output.tell(name, human=f" - {name}")
        return Exit.OK
    with context.working(changes=False):
        release = context.repository.release(context.system.version())
        if has_dep or deps:
            return _list_relations(context, release, has_dep=has_dep, deps=deps)
        if context.is_set("orphans"):
            includes = _includes(_load_installed(context, release))
            for name in sorted(orphans(_tracked(context, includes), includes)):
                output.tell(name, human=f" - {name}")
            return Exit.OK
    tracked = context.data.tracked() or installed
    for name in sorted(release.bundles if has_all else installed):
        ref = release.bundles.get(name)
        suffix = ""
        if has_status:
            if name in installed:
                suffix = ": explicitly installed" if name in tracked else ": installed"
            if ref is not None and ref.is_experimental:
                suffix += ", experimental" if suffix else ": experimental"
        output.tell(name + suffix, human=f" - {name}{suffix}")
    return Exit.OK


def bundle_info(context: Context, words: Sequence[str]) -> Exit:
    """Run `swupd bundle-info BUNDLE`."""
    if len(words) != 1:
        raise WrongUsageError("bundle-info needs exactly one bundle")
    name = words[0]
    output = context.output
    with context.working(changes=False):
        version = context.system.version()
        wanted = context.text("version")
        if wanted == "latest":
            version = context.repository.latest(context.format_name)[0]
        elif wanted is not None:
            version = context.number("version", 0, smallest=1)
        release = context.repository.release(version)
        ref = release.bundles.get(name)
        if ref is None:
            raise UnknownBundleError(bundle=name, version=version)
        bundle = context.repository.bundle(ref)
        needed = load_with_includes(context.repository, release, [name]) if context.is_set("dependencies") else {}
    installed = context.system.installed()
    tracked = context.data.tracked() or installed
    state = "Not installed"
    if name in installed:
        state = "Explicitly installed" if name in tracked else "Implicitly installed"
    state += ", experimental" if ref.is_experimental else ""
    output.tell(state, human=f"Status: {state}")
    output.say(f"Bundle {name}: last changed in version {ref.version}, {bundle.manifest.content_size} bytes")
    if context.is_set("dependencies"):
        output.say("Bundle dependencies:")
        for other in sorted(needed):
            if other != name:
                output.tell(other, human=f" - {other}")
    if context.is_set("files"):
        output.say("Files in bundle:")
        for entry in sorted(bundle.entries, key=lambda entry: entry.name):
            if entry.is_present:
                output.tell(os.fsdecode(entry.name), human=f" - {os.fsdecode(entry.name)}")
    return Exit.OK


def _list_relations(context: Context, release: Release, *, has_dep: str | None, deps: str | None) -> Exit:
    name = deps or has_dep or ""
    if name not in release.bundles:
        raise UnknownBundleError(bundle=name, version=release.version)
    if deps:
        found = set(load_with_includes(context.repository, release, [deps])) - {deps}
    else:
        is_wide = context.is_set("all")
        names = release.bundles if is_wide else [one for one in context.system.installed() if one in release.bundles]
        bundles = context.repository.bundles(release.bundles[one] for one in names)
        found = dependents(name, {bundle.ref.name: bundle.manifest.includes for bundle in bundles})
    for other in sorted(found):
        context.output.tell(other, human=f" - {other}")
    return Exit.OK


def _to_remove(
    context: Context, release: Release, words: Sequence[str], includes: Mapping[str, Sequence[str]], tracked: set[str]
) -> set[str]:
    for word in words:
        if word == CORE_BUNDLE:
            raise RequiredBundleError(bundle=word, needed_by=())
        if word not in includes:
            if word not in release.bundles:
                raise UnknownBundleError(bundle=word, version=release.version)
            raise NotInstalledError(bundle=word)
    gone = set(words)
    for word in words:
        needed_by = dependents(word, includes) - gone
        if needed_by and not context.is_set("force"):
            _show_tree(context, word, includes)
            raise RequiredBundleError(bundle=word, needed_by=tuple(sorted(needed_by)))
        gone |= needed_by
    if context.is_set("recursive"):
        # What was not added by name and nobody needs without them goes with them.
        left = {name: needs for name, needs in includes.items() if name not in gone}
        along = closure(gone, includes) - gone
        gone |= along & orphans(tracked - gone, left)
    return gone


def _show_tree(context: Context, name: str, includes: Mapping[str, Sequence[str]]) -> None:
    context.output.say(f"Bundle {name} is required by:")
    shown: set[str] = set()

    def show(bundle: str, depth: int) -> None:
        for other in sorted(includes):
            if bundle in includes[other] and other not in shown:
                shown.add(other)
                context.output.say(f"{'  ' * depth}- {other}")
                show(other, depth + 1)

    show(name, 1)


def _load_installed(context: Context, release: Release) -> dict[str, Bundle]:
    names = sorted(name for name in context.system.installed() if name in release.bundles)
    bundles = context.repository.bundles(release.bundles[name] for name in names)
    return {bundle.ref.name: bundle for bundle in bundles}


def _includes(bundles: Mapping[str, Bundle]) -> dict[str, tuple[str, ...]]:
    return {name: bundle.manifest.includes for name, bundle in bundles.items()}


def _tracked(context: Context, installed: Iterable[str]) -> set[str]:
    return set(context.data.tracked() or installed)


def _check_room(context: Context, bundles: Iterable[Bundle]) -> None:
    """Refuse what does not fit, by the sizes that manifests state and a tenth for what comes between."""
    if context.is_set("skip_diskspace_check"):
        return
    needed = sum(bundle.manifest.content_size for bundle in bundles) * 11 // 10
    place = context.root / "usr"
    status = os.statvfs(place if place.is_dir() else context.root)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise NoSpaceError(place=place, needed_bytes=needed, free_bytes=free)
