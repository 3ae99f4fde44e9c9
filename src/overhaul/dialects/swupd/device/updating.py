"""`update` and `check-update`."""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from overhaul.dialects.swupd.device.bundlesets import load_with_includes
from overhaul.dialects.swupd.device.context import Context
from overhaul.dialects.swupd.device.errors import (
    MomError,
    NoSpaceError,
    UnknownVersionError,
    VersionMismatchError,
)
from overhaul.dialects.swupd.device.exits import Exit
from overhaul.dialects.swupd.device.objects import PackRef, content_limit, paths_by_hash
from overhaul.dialects.swupd.device.planning import Changes, Content, changes_between, consolidate
from overhaul.dialects.swupd.device.repository import Bundle, BundleRef, Release
from overhaul.dialects.swupd.device.system import System
from overhaul.dialects.swupd.device.verifying import actions
from overhaul.dialects.swupd.hash import hash_path
from overhaul.dialects.swupd.manifest import Entry
from overhaul.errors import OverhaulError

_PRE_UPDATE = b"/usr/bin/clr_pre_update.sh"
_LAG_WORTH_A_WARNING = 20
_LAG_TOO_LARGE = 500


@dataclass(frozen=True)
class Plan:
    """What an update would do."""

    current: int
    target: Release
    bundles: Mapping[str, Bundle]
    packs: tuple[PackRef, ...]
    changes: Changes
    #: What is installed and what will be.
    before: Content
    after: Content
    #: Bytes by which the content grows, as the signed manifests state it.
    growth_bytes: int
    #: Bundles that are installed and no longer exist.
    vanished: tuple[str, ...]


def update(context: Context) -> Exit:
    """Run `swupd update`."""
    if context.is_set("status"):
        return check_update(context)
    output = context.output
    output.plan_steps(4)
    with context.working(changes=not context.is_set("dry_run")) as finished:
        current = context.system.version()
        if finished is not None:
            actions(context).after([step.path for step in finished.place])
        if current == 0:
            raise UnknownVersionError(root=context.root, reason="VERSION_ID is 0")
        _check_mirror(context)
        target, has_more = _target(context, current)
        output.say(f"Update started: version {current}")
        if target <= current:
            output.say(f"Version {current} is the newest.")
            return Exit.OK
        plan = make_plan(context, current, target)
        if context.is_set("dry_run"):
            _preview(context, plan)
            return Exit.OK
        _run_pre_update(context, plan)
        code = _carry_out(context, plan)
        if code is not Exit.OK or context.is_set("download"):
            return code
    return _go_on(context, plan, has_more=has_more)


def make_plan(context: Context, current: int, target: int) -> Plan:
    """Return what leads from the installed version to `target`."""
    repository = context.repository
    before, after = repository.release(current), repository.release(target)
    if context.format_name != "staging" and after.format != int(context.format_name):
        raise MomError(version=target, reason=f"it has format {after.format}, and this system {context.format_name}")
    installed = context.system.installed()
    old_refs = {name: before.bundles[name] for name in installed if name in before.bundles}
    old_bundles = repository.bundles(old_refs.values())
    vanished = [name for name in installed if name not in after.bundles]
    new_bundles = load_with_includes(
        repository,
        after,
        [name for name in installed if name in after.bundles],
        old=old_refs,
    )
    contents = consolidate(old_bundles), consolidate(new_bundles.values())
    for path in contents[1].conflicts:
        context.output.note(f"{os.fsdecode(path)} is listed with different content by two bundles and stays as it is")
    changes = changes_between(
        *contents,
        version=target,
        leaves_alone=context.classes.leaves_alone,
        is_intact=lambda entry: _is_intact(context, entry),
    )
    parents = missing_parents(context, changes.put, contents[1])
    changes = Changes(tuple(sorted([*changes.put, *parents], key=lambda entry: entry.name)), changes.remove)
    return Plan(
        current=current,
        target=after,
        bundles=new_bundles,
        packs=packs_between(old_refs, new_bundles),
        changes=changes,
        before=contents[0],
        after=contents[1],
        growth_bytes=sum(bundle.manifest.content_size for bundle in new_bundles.values())
        - sum(bundle.manifest.content_size for bundle in old_bundles),
        vanished=tuple(sorted(vanished)),
    )


def packs_between(old: Mapping[str, BundleRef], new: Mapping[str, Bundle]) -> tuple[PackRef, ...]:
    """Return the packs of all bundles that changed; a bundle that was not there comes out of its zero pack."""
    packs = []
    for name, bundle in sorted(new.items()):
        before = old[name].version if name in old else 0
        if bundle.ref.version > before:
            packs.append(PackRef(name, before, bundle.ref.version, content_limit(bundle)))
    return tuple(packs)


def missing_parents(context: Context, put: Iterable[Entry], content: Content) -> list[Entry]:
    """Return the directories that must be there for `put` and are missing or something else, as far as listed."""
    root = os.fsencode(context.root).rstrip(b"/")
    names = {entry.name for entry in put}
    found: dict[bytes, Entry] = {}
    seen: set[bytes] = set()
    for name in names:
        parent = name.rpartition(b"/")[0]
        while parent and parent not in seen:
            seen.add(parent)
            entry = content.entries.get(parent)
            is_listed = entry is not None and entry.kind == "D" and parent not in names
            # A directory that has become a link is somebody's doing, and nothing is written behind it.
            if entry is not None and is_listed and not os.path.lexists(root + parent):
                found[parent] = entry
            parent = parent.rpartition(b"/")[0]
    return list(found.values())


def check_update(context: Context) -> Exit:
    """Run `swupd check-update`: 0 when there is something newer, 1 when not."""
    output = context.output
    current = context.system.version()
    newest = context.repository.latest_of_all()
    if output.is_verbose:
        own = context.repository.format_of(current)
        theirs = context.repository.format_of(newest)
        output.say(f"Current OS version: {current} (format {own or context.format_name})")
        inside = context.repository.latest(context.format_name)[0]
        output.say(f"Latest version of format {context.format_name}: {inside}")
        output.say(f"Latest server version: {newest} (format {theirs or 'unknown'})")
    if newest <= current:
        output.say(f"Current OS version: {current}")
        output.say("There are no updates available")
        return Exit.NO
    output.say(f"Current OS version: {current}")
    output.tell(str(newest), human=f"There is a new OS version available: {newest}")
    return Exit.OK


def object_limit(bundles: Iterable[Bundle]) -> int:
    """Return how many bytes a single object of `bundles` can have."""
    return max((content_limit(bundle) for bundle in bundles), default=0)


def _target(context: Context, current: int) -> tuple[int, bool]:
    versions = context.repository.latest(context.format_name)
    newest = versions[0]
    wanted = context.text("version")
    if wanted not in {None, "latest"}:
        number = context.number("version", 0)
        if number < current:
            raise VersionMismatchError(f"Version {number} is older than the installed version {current}")
        newest = min(newest, number)
    if context.is_set("incremental"):
        steps = sorted(version for version in versions if current < version <= newest)
        if steps:
            return steps[0], len(steps) > 1
    return newest, False


def _check_mirror(context: Context) -> None:
    """Leave a mirror that lags far behind, and say so of one that lags a little."""
    mirror = context.system.mirror()[1]
    shipped = context.system.shipped_url("version")
    if mirror is None or shipped is None or mirror == shipped or context.text("url") or context.text("versionurl"):
        return
    try:
        ours = context.repository.latest(context.format_name)[0]
        central = context.repository.__class__(
            shipped, shipped, context.cache, context.trust, context.downloader, context.repository.machine
        ).latest(context.format_name)[0]
    except OverhaulError:
        return
    lag = central - ours
    if lag > _LAG_TOO_LARGE:
        context.output.warn(f"the mirror {mirror} is {lag} versions behind and is no longer used")
        context.system.unset_mirror()
        for part in ("repository", "content_url", "version_url", "cache", "objects", "applier"):
            context.__dict__.pop(part, None)
        context.cache.prepare(context.state)
    elif lag > _LAG_WORTH_A_WARNING:
        context.output.warn(f"the mirror {mirror} is {lag} versions behind")


def _is_intact(context: Context, entry: Entry) -> bool:
    path = os.fsencode(context.root).rstrip(b"/") + entry.name
    name = entry.name if context.hashes_paths and entry.kind == "D" else None
    return hash_path(path, path=name, with_xattrs=context.with_xattrs) == entry.hash


def _preview(context: Context, plan: Plan) -> None:
    output = context.output
    for entry in plan.changes.put:
        sign = "~" if entry.name in plan.before.entries and plan.before.entries[entry.name].is_present else "+"
        output.tell(f"{sign} {os.fsdecode(entry.name)}")
    for entry in plan.changes.remove:
        output.tell(f"- {os.fsdecode(entry.name)}")
    output.say(
        f"Version {plan.current} to {plan.target.version}: {len(plan.changes.put)} to write, "
        f"{len(plan.changes.remove)} to remove, nothing changed yet."
    )


def _run_pre_update(context: Context, plan: Plan) -> None:
    entry = plan.after.entries.get(_PRE_UPDATE)
    if entry is None or not entry.is_present or context.is_set("no_scripts") or str(context.root) != "/":
        return
    if _is_intact(context, entry):
        from overhaul.host.processes import run

        try:
            run([os.fsdecode(_PRE_UPDATE)])
        except OverhaulError as error:
            context.output.warn(str(error))


def _carry_out(context: Context, plan: Plan) -> Exit:
    output = context.output
    changes = plan.changes
    _check_space(context, plan)
    gathered = context.objects.gather(
        changes.put,
        packs=plan.packs,
        limit_bytes=object_limit(plan.bundles.values()),
        progress=output,
        installed=paths_by_hash(plan.before.entries.values()),
        root=context.root,
    )
    for reason in gathered.bad_packs.values():
        output.warn(f"a pack was of no use: {reason}")
    output.note(
        f"Objects: {gathered.from_cache} cached, {gathered.from_packs} from packs, "
        f"{gathered.from_deltas} from deltas, {gathered.from_fullfiles} single files"
    )
    if context.is_set("download"):
        if not context.is_set("keepcache"):
            context.cache.forget_objects()
        output.say("The update is downloaded, and nothing was changed.")
        return Exit.OK
    output.begin("Files", len(changes.put), "files")
    applied = context.applier.apply(
        changes.put,
        [entry.name for entry in changes.remove],
        version=plan.target.version,
        untrack=plan.vanished,
        advance=output.advance,
    )
    output.end()
    context.report(applied)
    if applied.failed:
        return Exit.CANNOT_RENAME
    if context.is_set("update_search_file_index"):
        from overhaul.dialects.swupd.device.searching import build_index

        build_index(context, plan.target)
    actions(context).after([entry.name for entry in (*changes.put, *changes.remove)])
    if not context.is_set("keepcache"):
        context.cache.forget_objects()
    output.say(f"Update successful: version {plan.current} updated to version {plan.target.version}")
    return Exit.OK


def _check_space(context: Context, plan: Plan) -> None:
    """Refuse before the first byte what cannot fit: what bundles grow by is stated in their signed manifests.

    That is a lower bound. What is announced for each download, and the exact sizes of all objects, are checked
    before they are written.
    """
    if context.is_set("skip_diskspace_check"):
        return
    for place in {context.root, context.cache.directory}:
        status = os.statvfs(place)
        free = status.f_bavail * status.f_frsize
        if plan.growth_bytes > free:
            raise NoSpaceError(place=place, needed_bytes=plan.growth_bytes, free_bytes=free)


def _go_on(context: Context, plan: Plan, *, has_more: bool) -> Exit:
    """Start again for the next step: another release on the way, or a new format that the update brought."""
    new_format = System(context.root).default("format")
    bumps = new_format is not None and new_format != context.format_name and context.text("format") is None
    if context.name or not (has_more or bumps):
        return Exit.OK
    version = System(context.root).version()
    if version < plan.target.version:
        raise UnknownVersionError(
            root=context.root, reason=f"version {plan.target.version} is applied, and os-release says {version}"
        )
    context.output.say("The update goes on with the next step.")
    context.output.close(Exit.OK)
    return reexecute()


def reexecute() -> Exit:
    """Run the same command again, with the program that is installed now."""
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - replaces us, without a shell
