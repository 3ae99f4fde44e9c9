"""`3rd-party`: repositories beside the system's own, each with a root of its own.

    ROOT/opt/3rd-party/
        repo.ini                name -> url
        bundles/<name>/         a complete root
        bin/<program>           wrappers that start exported programs inside their root
        script.template         what a wrapper looks like, for who wants another one

A repository is trusted with the certificate that it ships itself, after a person has agreed to it. No scripts of a
repository run, and files that would give their users other rights need a person's yes.
"""

import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from overhaul.dialects.swupd.device import bundling, housekeeping, updating, verifying
from overhaul.dialects.swupd.device.bundlesets import load_with_includes
from overhaul.dialects.swupd.device.context import Context
from overhaul.dialects.swupd.device.errors import RepositoryNameError, UnknownBundleError, WrongUsageError
from overhaul.dialects.swupd.device.exits import Exit
from overhaul.dialects.swupd.device.planning import consolidate
from overhaul.dialects.swupd.device.system import CERTIFICATE, System
from overhaul.dialects.swupd.device.verifying import Expected, put_right
from overhaul.dialects.swupd.manifest import Entry
from overhaul.dialects.swupd.names import CORE_BUNDLE
from overhaul.host.files import replace_bytes

_HOME = Path("opt/3rd-party")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_EXPORTED_FROM = (b"/bin/", b"/usr/bin/", b"/usr/local/bin/")
_MARK = "# Made by swupd 3rd-party; changes are lost.\n"
_TEMPLATE = """#!/bin/sh
export PATH={root}/usr/bin:{root}/bin:{root}/usr/local/bin:"$PATH"
export LD_LIBRARY_PATH={root}/usr/lib64:{root}/usr/lib:"$LD_LIBRARY_PATH"
export XDG_DATA_DIRS={root}/usr/share:"$XDG_DATA_DIRS"
export XDG_CONFIG_DIRS={root}/etc/xdg:"$XDG_CONFIG_DIRS"
exec {program} "$@"
"""
_UNUSUAL_RIGHTS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX

_SIMPLE: dict[str, Callable[[Context], Exit]] = {
    "update": updating.update,
    "bundle-list": bundling.bundle_list,
    "diagnose": verifying.diagnose,
    "repair": verifying.repair,
    "check-update": updating.check_update,
    "info": housekeeping.info,
    "clean": housekeeping.clean,
}
_CHANGING = frozenset({"update", "repair"})


def third_party(context: Context, words: Sequence[str]) -> Exit:
    """Run `swupd 3rd-party SUBCOMMAND …`."""
    if not words:
        raise WrongUsageError("3rd-party needs a sub-command")
    sub, *rest = words
    match sub:
        case "add":
            if len(rest) != 2:
                raise WrongUsageError("3rd-party add needs a name and a URL")
            return _add(context, *rest)
        case "remove":
            if len(rest) != 1:
                raise WrongUsageError("3rd-party remove needs a name")
            return _forget(context, rest[0])
        case "list":
            for name, url in read_repositories(context.base_root).items():
                context.output.tell(f"{name}: {url}")
            return Exit.OK
        case "bundle-add":
            return _bundle_add(context, rest)
        case "bundle-remove" | "bundle-info":
            inner = _with_bundle(context, rest)
            code = (bundling.bundle_remove if sub == "bundle-remove" else bundling.bundle_info)(inner, rest)
            _write_wrappers(inner)
            return code
    if sub not in _SIMPLE or rest:
        raise WrongUsageError(f"3rd-party {' '.join(words)} is not known")
    return _in_each(context, sub)


def read_repositories(root: Path) -> dict[str, str]:
    """Return the URL of each repository by name.

    Raises:
        RepositoryNameError: The list is damaged.
    """
    try:
        lines = (root / _HOME / "repo.ini").read_text().splitlines()
    except FileNotFoundError:
        return {}
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        bare = line.strip()
        if bare.startswith("[") and bare.endswith("]"):
            name = bare[1:-1]
        elif bare.startswith("url=") and _NAME.fullmatch(name):
            found[name] = bare.removeprefix("url=").strip()
        elif bare and not bare.startswith(("#", ";")):
            raise RepositoryNameError(name=name, reason=f"repo.ini has the line {bare[:80]!r}")
    return found


def _write_repositories(root: Path, repositories: dict[str, str]) -> None:
    home = root / _HOME
    home.mkdir(parents=True, exist_ok=True)
    text = "".join(f"[{name}]\nurl={url}\n\n" for name, url in sorted(repositories.items()))
    replace_bytes(home / "repo.ini", text.encode())


def _inner(context: Context, name: str, url: str, *, certificate: Path | None = None) -> Context:
    root = context.base_root / _HOME / "bundles" / name
    values = {key: value for key, value in context.values.items() if key not in {"url", "contenturl", "versionurl"}}
    inner = Context({**values, "no_scripts": True}, context.output, name=name, url=url)
    inner.root_override = root
    inner.certificate_override = certificate or root / CERTIFICATE
    return inner


def _chosen(context: Context) -> dict[str, str]:
    repositories = read_repositories(context.base_root)
    name = context.text("repo")
    if name is None:
        return repositories
    if name not in repositories:
        raise RepositoryNameError(name=name, reason="there is none of this name")
    return {name: repositories[name]}


def _in_each(context: Context, sub: str) -> Exit:
    worst = Exit.OK
    repositories = _chosen(context)
    for name, url in repositories.items():
        if context.text("repo") is None:
            context.output.tell(f"[{name}]")
        inner = _inner(context, name, url)
        code = _SIMPLE[sub](inner)
        if sub in _CHANGING and code is Exit.OK:
            _write_wrappers(inner)
        worst = worst if code is Exit.OK else code
    return worst


def _with_bundle(context: Context, names: Sequence[str]) -> Context:
    """Return the one repository that has the first of `names`."""
    if not names:
        raise WrongUsageError("a bundle must be named")
    found = []
    for name, url in _chosen(context).items():
        inner = _inner(context, name, url)
        with inner.working(changes=False):
            release = inner.repository.release(inner.system.version())
        if names[0] in release.bundles:
            found.append(inner)
    if len(found) > 1:
        raise WrongUsageError(f"Bundle {names[0]} is in several repositories; choose one with --repo")
    if not found:
        raise UnknownBundleError(bundle=names[0], version=0)
    return found[0]


def _bundle_add(context: Context, names: Sequence[str]) -> Exit:
    code = Exit.OK
    for name in names:
        inner = _with_bundle(context, [name])
        _confirm_rights(inner, [name])
        one = bundling.bundle_add(inner, [name])
        _write_wrappers(inner)
        code = code if one is Exit.OK else one
    return code


def _add(context: Context, name: str, url: str) -> Exit:
    repositories = read_repositories(context.base_root)
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        raise RepositoryNameError(name=name, reason="the name may hold letters, digits and _ . - only")
    if name in repositories:
        raise RepositoryNameError(name=name, reason="there is one of this name already")
    if url in repositories.values():
        raise RepositoryNameError(name=name, reason=f"{url} is known under another name")
    root = context.base_root / _HOME / "bundles" / name
    if root.exists():
        if not context.is_set("force"):
            raise RepositoryNameError(name=name, reason=f"{root} exists already; pass --force to replace it")
        shutil.rmtree(root)
    root.mkdir(parents=True)
    try:
        _install(context, name, url, root)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    _write_repositories(context.base_root, {**repositories, name: url})
    _write_wrappers(_inner(context, name, url))
    context.output.say(f"Repository {name} added")
    return Exit.OK


def _install(context: Context, name: str, url: str, root: Path) -> None:
    # Nothing can vouch for a certificate that nobody here knows; a person looks at it, and all else is checked with it.
    unchecked = _inner(context, name, url)
    unchecked.values["nosigcheck"] = True
    certificate = root.parent / f".{name}.pem"
    try:
        with unchecked.working():
            version = unchecked.repository.latest(unchecked.format_name)[0]
            release = unchecked.repository.release(version)
            core = load_with_includes(unchecked.repository, release, [])[CORE_BUNDLE]
            wanted = b"/" + os.fsencode(CERTIFICATE)
            entry = next((entry for entry in core.entries if entry.name == wanted and entry.is_present), None)
            if entry is None:
                raise RepositoryNameError(name=name, reason="its os-core ships no certificate")
            unchecked.objects.gather([entry], packs=(), limit_bytes=1 << 20, progress=context.output)
            certificate.write_bytes((unchecked.objects.directory / entry.hash).read_bytes())
        context.output.say(certificate.read_text(errors="replace"))
        if not context.is_set("nosigcheck") and not context.confirms(f"Trust the repository {name} with it?"):
            raise RepositoryNameError(name=name, reason="its certificate was not agreed to")
        checked = _inner(context, name, url, certificate=certificate)
        with checked.working():
            version = checked.repository.latest(checked.format_name)[0]
            release = checked.repository.release(version)
            if str(release.format) != checked.format_name:
                raise RepositoryNameError(name=name, reason=f"it has format {release.format}")
            bundles = load_with_includes(checked.repository, release, [])
            expected = Expected(release, bundles, consolidate(bundles.values()))
            entries = [entry for entry in expected.content.entries.values() if entry.is_present]
            if put_right(checked, expected, entries, version=version, shows=False):
                raise RepositoryNameError(name=name, reason="some of its files could not be installed")
    finally:
        certificate.unlink(missing_ok=True)


def _forget(context: Context, name: str) -> Exit:
    repositories = read_repositories(context.base_root)
    if name not in repositories:
        raise RepositoryNameError(name=name, reason="there is none of this name")
    inner = _inner(context, name, repositories.pop(name))
    with inner.working():
        for wrapper in _wrappers(inner):
            wrapper.unlink()
        _write_repositories(context.base_root, repositories)
        shutil.rmtree(inner.root, ignore_errors=True)
    shutil.rmtree(inner.data.directory, ignore_errors=True)
    context.output.say(f"Repository {name} removed")
    return Exit.OK


def _confirm_rights(inner: Context, names: Sequence[str]) -> None:
    """Ask before anything with setuid, setgid or sticky bits comes in."""
    with inner.working():
        release = inner.repository.release(inner.system.version())
        bundles = load_with_includes(inner.repository, release, names)
        content = consolidate(bundle for name, bundle in bundles.items() if name not in inner.system.installed())
        files = [entry for entry in content.entries.values() if entry.is_present and entry.kind == "F"]
        verifying.fetch(inner, Expected(release, bundles, content), files)
        unusual = [entry for entry in files if _has_unusual_rights(inner, entry)]
    if not unusual:
        return
    for entry in unusual:
        inner.output.warn(f"{os.fsdecode(entry.name)} gives its users other rights")
    if not inner.confirms("Install it all the same?"):
        raise RepositoryNameError(name=inner.name, reason="files with unusual rights were not agreed to")


def _has_unusual_rights(inner: Context, entry: Entry) -> bool:
    try:
        return bool(os.lstat(inner.objects.directory / entry.hash).st_mode & _UNUSUAL_RIGHTS)
    except FileNotFoundError:
        return False


def _write_wrappers(inner: Context) -> None:
    """Make the wrappers of all exported programs that are installed, and remove those of others."""
    home = inner.base_root / _HOME
    template_file = home / "script.template"
    template = template_file.read_text() if template_file.is_file() else _TEMPLATE
    with inner.working():
        release = inner.repository.release(System(inner.root).version())
        names = [name for name in inner.system.installed() if name in release.bundles]
        bundles = inner.repository.bundles(release.bundles[name] for name in names)
    programs = {
        entry.name
        for bundle in bundles
        for entry in bundle.entries
        if entry.mark == "x" and entry.is_present and entry.name.startswith(_EXPORTED_FROM)
    }
    directory = home / "bin"
    directory.mkdir(parents=True, exist_ok=True)
    wanted = {directory / os.path.basename(os.fsdecode(name)): os.fsdecode(name) for name in programs}
    ours = set(_wrappers(inner))
    for path in ours - wanted.keys():
        path.unlink()
    for path, program in wanted.items():
        if path.exists() and path not in ours:
            raise RepositoryNameError(name=inner.name, reason=f"another repository has a program called {path.name}")
        body = template.replace("{root}", shlex.quote(str(inner.root)))
        body = body.replace("{program}", shlex.quote(str(inner.root) + program))
        first, _newline, rest = body.partition("\n")
        replace_bytes(path, f"{first}\n{_MARK}# repository: {inner.name}\n{rest}".encode(), mode=0o755)


def _wrappers(inner: Context) -> list[Path]:
    directory = inner.base_root / _HOME / "bin"
    mark = f"# repository: {inner.name}\n"
    found = directory.iterdir() if directory.is_dir() else ()
    return [path for path in found if path.is_file() and mark in path.read_text(errors="replace")]
