"""Which Debian archives an image is made of: resolved by apt from signed indexes, downloaded once, checked again.

```
DIRECTORY/
  SUITE-ARCH/        apt's state: indexes as it verified them, an empty list of installed packages, its configuration
  archives/          every .deb that was ever needed; a build sees this read-only
  lock               held by the one process that asks apt
```

apt runs in the sandbox with network and without any right; no package's script runs here. What it resolved is a list of
(name, version, architecture, SHA-256) out of indexes that Debian signed: its digest is the builder's digest, and it is
the manifest, before anything is built. The signer asks the same of an apt of its own.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from overhaul.builds.make_output import problem_text
from overhaul.builds.recipe import Recipe
from overhaul.builds.results import BuildFailedError, BuildFailure, FailureKind
from overhaul.builds.sandbox import Ended, Follower, Limits, Sandbox
from overhaul.host.locks import LockedError, locked

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEFAULT_SOURCES = (
    f"deb [signed-by={_KEYRING}] http://deb.debian.org/debian {{suite}} main",
    f"deb [signed-by={_KEYRING}] http://deb.debian.org/debian {{suite}}-updates main",
    f"deb [signed-by={_KEYRING}] http://deb.debian.org/debian-security {{suite}}-security main",
)
#: What every image has; mmdebstrap's smallest variant with a package manager.
BASE = ("?essential", "?priority(required)", "apt")
_INSTALLED = re.compile(r"^Inst (\S+) (?:\[[^\]]*\] )?\((\S+) ", re.MULTILINE)
_MISSING = re.compile(
    r"^E: (?:Unable to locate package|Package ')?\s*([a-z0-9][a-z0-9.+-]*)(?:' has no installation candidate)?$", re.M
)
_UNMET = re.compile(r"^ ([a-z0-9][a-z0-9.+-]*)(?::\S+)? : (?:Conflicts|Breaks|Depends|PreDepends): (\S+)", re.MULTILINE)
_WAIT_S = 0.2
_APT_CONFIGURATION = """\
Dir "/apt";
Dir::State "/apt/state";
Dir::State::status "/apt/status";
Dir::Cache "/apt/cache";
Dir::Cache::archives "/archives";
Dir::Log "/apt/log";
Dir::Etc "/apt/etc";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "true";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "2";
"""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One Debian archive as a signed index lists it."""

    name: str
    version: str
    architecture: str
    sha256: str
    #: Its paragraph of the index, without where it lies there.
    paragraph: str

    @property
    def file_name(self) -> str:
        """Its name in apt's cache."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Everything an image will consist of."""

    archives: tuple[Archive, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of what it consists of."""
        lines = sorted(f"{one.name} {one.version} {one.architecture} {one.sha256}\n" for one in self.archives)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def manifest(self) -> dict[str, str]:
        """Package -> version."""
        return {one.name: one.version for one in sorted(self.archives, key=lambda one: one.name)}


@dataclass(frozen=True, kw_only=True)
class DebianArchives:
    """The archives of Debian's mirrors, below one directory."""

    directory: Path
    #: Lines of a sources.list; `{suite}` stands for the recipe's version.
    sources: tuple[str, ...] = DEFAULT_SOURCES
    #: Indexes younger than this are not asked for again.
    refresh_s: float = 900.0
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.time

    @property
    def cache(self) -> Path:
        """The directory of all downloaded archives."""
        return self.directory / "archives"

    def sources_list(self, suite: str) -> str:
        """Return the sources.list of an image of `suite`."""
        return "".join(line.format(suite=suite) + "\n" for line in self.sources)

    def resolve(self, recipe: Recipe, follower: Follower, *, download: bool) -> Resolved:
        """Return what an image of `recipe` consists of; with `download`, all of it lies in `cache` afterwards.

        Raises:
            BuildFailedError: The selection is impossible, or the mirrors cannot be used.
        """
        refused = [name for name in recipe.packages if name.startswith("-")]
        if refused:
            detail = f"Impossible package selection: {', '.join(refused)} (Debian images are not taken anything away)"
            raise BuildFailedError(BuildFailure(kind=FailureKind.IMPOSSIBLE_PACKAGES, detail=detail))
        state = self._make_directories(recipe)
        while True:
            follower.check()
            try:
                with locked(self.directory / "lock", purpose="a resolution of Debian packages"):
                    self._configure(state, recipe)
                    return self._resolve(state, recipe, follower, download=download)
            except LockedError:
                time.sleep(_WAIT_S)

    def _make_directories(self, recipe: Recipe) -> Path:
        state = self.directory / f"{recipe.version}-{recipe.target.replace('/', '-')}"
        for part in ("state/lists/partial", "cache", "log", "etc"):
            (state / part).mkdir(parents=True, exist_ok=True)
            for path in [state / part, *list((state / part).parents)[: part.count("/") + 1]]:
                path.chmod(0o777)  # the sandbox's user is another one; nobody else gets into `directory`
        (self.cache / "partial").mkdir(parents=True, exist_ok=True)
        for path in (self.cache, self.cache / "partial"):
            path.chmod(0o777)
        self.directory.chmod(0o700)
        return state

    def _configure(self, state: Path, recipe: Recipe) -> None:
        """Write what apt reads; another process's apt would read half of it."""
        (state / "status").touch()
        (state / "apt.conf").write_text(_APT_CONFIGURATION.format(architecture=recipe.target))
        (state / "etc/sources.list").write_text(self.sources_list(recipe.version))

    def _resolve(self, state: Path, recipe: Recipe, follower: Follower, *, download: bool) -> Resolved:
        self._refresh(state, follower)
        install = ("install", "--yes", "--quiet", *BASE, *recipe.packages)
        simulated = self._apt(state, follower, "apt-get", "--simulate", *install)
        if simulated.status != 0:
            raise _impossible(simulated)
        chosen = _INSTALLED.findall(simulated.stdout.decode(errors="replace"))
        shown = self._apt(
            state, follower, "apt-cache", "show", *(f"{name}={version}" for name, version in chosen), quiet=True
        )
        resolved = Resolved(archives=_archives(shown.stdout.decode(errors="replace"), dict(chosen)))
        if download and any(not (self.cache / one.file_name).exists() for one in resolved.archives):
            downloaded = self._apt(state, follower, "apt-get", "--download-only", *install, network=True)
            if downloaded.status != 0:
                raise _unusable(downloaded)
        return resolved

    def _refresh(self, state: Path, follower: Follower) -> None:
        stamp = state / "refreshed"
        if stamp.exists() and self.clock() - float(stamp.read_text()) < self.refresh_s:
            return
        updated = self._apt(state, follower, "apt-get", "-qq", "--error-on=any", "update", network=True)
        if updated.status != 0:
            raise _unusable(updated)
        stamp.write_text(str(self.clock()))

    def _apt(
        self, state: Path, follower: Follower, program: str, *arguments: str, network: bool = False, quiet: bool = False
    ) -> Ended:
        limits = self.limits
        place = Sandbox(writable={"/apt": state, "/archives": self.cache}, network=network, limits=limits)
        return place.run(
            [program, *arguments],
            directory="/apt",
            follower=_Quiet(follower) if quiet else follower,
            environment={"APT_CONFIG": "/apt/apt.conf", "DEBIAN_FRONTEND": "noninteractive"},
        )


class DebianExpectation:
    """What an image of Debian must consist of, resolved by the signer's own apt."""

    def __init__(self, archives: DebianArchives) -> None:
        self._archives = archives

    def builder_digests(self, recipe: Recipe) -> frozenset[str]:
        """Return the digest of what `recipe` resolves to."""
        return frozenset({self._archives.resolve(recipe, _Nobody(), download=False).digest})

    def manifest(self, recipe: Recipe) -> Mapping[str, str] | None:
        """Return what `recipe` resolves to."""
        return self._archives.resolve(recipe, _Nobody(), download=False).manifest


class _Nobody:
    def log(self, text: str) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class _Quiet:
    """Follows for the sake of stopping, and does not repeat paragraphs of an index."""

    follower: Follower

    def log(self, text: str) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Raise when it must stop."""
        self.follower.check()


def _archives(text: str, chosen: Mapping[str, str]) -> tuple[Archive, ...]:
    found: dict[str, Archive] = {}
    for paragraph in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        name, version = fields.get("Package", ""), fields.get("Version", "")
        if chosen.get(name, chosen.get(f"{name}:{fields.get('Architecture')}")) == version and name:
            kept = [line for line in paragraph.splitlines() if not line.startswith("Filename:")]
            found[name] = Archive(
                name=name,
                version=version,
                architecture=fields["Architecture"],
                sha256=fields["SHA256"],
                paragraph="\n".join(kept),
            )
    return tuple(found[name] for name in sorted(found))


def packages_index(archives: Sequence[Archive], *, below: str) -> str:
    """Return the text of a `Packages` file for archives that lie in the directory `below`."""
    return "".join(f"{one.paragraph}\nFilename: {below}/{one.file_name}\n\n" for one in archives)


def release_text(suite: str, index: bytes) -> str:
    """Return the `Release` of a flat repository with one `Packages`: mmdebstrap picks essential packages by suite."""
    digest = hashlib.sha256(index).hexdigest()
    return f"Suite: {suite}\nCodename: {suite}\nSHA256:\n {digest} {len(index)} Packages\n"


def _impossible(ended: Ended) -> BuildFailedError:
    said = ended.stdout.decode(errors="replace") + ended.stderr.decode(errors="replace")
    missing = tuple(sorted(set(_MISSING.findall(said))))
    conflicts = tuple(sorted({name for pair in _UNMET.findall(said) for name in pair} - set(missing)))
    return BuildFailedError(
        BuildFailure(
            kind=FailureKind.IMPOSSIBLE_PACKAGES,
            detail=problem_text(missing, conflicts),
            missing=missing,
            conflicts=conflicts,
            stdout=ended.stdout.decode(errors="replace"),
            stderr=ended.stderr.decode(errors="replace"),
        )
    )


def _unusable(ended: Ended) -> BuildFailedError:
    return BuildFailedError(
        BuildFailure(
            kind=FailureKind.SETUP_FAILED,
            detail="The Debian mirrors cannot be used",
            stdout=ended.stdout.decode(errors="replace"),
            stderr=ended.stderr.decode(errors="replace"),
        )
    )
