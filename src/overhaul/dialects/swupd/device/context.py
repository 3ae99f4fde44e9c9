"""One run of the client: what the options, the configuration and the system say, put together once."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from overhaul.dialects.swupd.device.errors import WrongUsageError
from overhaul.dialects.swupd.device.options import Values
from overhaul.dialects.swupd.device.output import Output
from overhaul.dialects.swupd.device.pathclasses import Classes, mount_points
from overhaul.dialects.swupd.device.state import DEFAULT_STATE, Cache, Data
from overhaul.dialects.swupd.device.system import System
from overhaul.dialects.swupd.device.trust import Trust, check_clock

if TYPE_CHECKING:
    from overhaul.dialects.swupd.device.applying import Applier
    from overhaul.dialects.swupd.device.fetching import Downloader
    from overhaul.dialects.swupd.device.journal import Record
    from overhaul.dialects.swupd.device.objects import Objects
    from overhaul.dialects.swupd.device.placing import Applied
    from overhaul.dialects.swupd.device.repository import Repository


@dataclass
class Context:
    """What every command works with; parts are made when they are first asked for."""

    values: Values
    output: Output
    #: Fixed for 3rd-party repositories, whose addresses and directories are their own.
    name: str = ""
    url: str | None = None
    root_override: Path | None = None
    certificate_override: Path | None = None

    def is_set(self, key: str) -> bool:
        """Tell whether a switch is on."""
        return self.values.get(key) is True

    def text(self, key: str) -> str | None:
        """Return an option's argument, or None."""
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str, default: int, *, smallest: int = 0) -> int:
        """Return an option's argument as a number; raise `WrongUsageError` for what is none."""
        text = self.text(key)
        if text is None:
            return default
        if not text.isascii() or not text.isdecimal() or len(text) > 9 or int(text) < smallest:
            raise WrongUsageError(f"--{key.replace('_', '-')} is {text!r}, which is no number from {smallest} on")
        return int(text)

    @cached_property
    def base_root(self) -> Path:
        """The root of the system, also for a 3rd-party repository."""
        return Path(os.path.abspath(self.text("path") or "/"))

    @cached_property
    def root(self) -> Path:
        """The root that is worked on."""
        return self.root_override or self.base_root

    @cached_property
    def system(self) -> System:
        """The system in the root."""
        return System(self.root)

    @cached_property
    def data(self) -> Data:
        """The data that must survive."""
        given = self.text("datadir") or self.text("statedir")
        place = Path(given) if given else self.base_root / DEFAULT_STATE
        return Data(place / "3rd-party" / self.name if self.name else place)

    @cached_property
    def state(self) -> Path:
        """The directory of all caches."""
        given = self.text("cachedir") or self.text("statedir")
        place = Path(given) if given else Path("/") / DEFAULT_STATE
        return place / "3rd-party" / self.name if self.name else place

    @cached_property
    def content_url(self) -> str:
        """Where objects and manifests come from."""
        return self._url(self.text("contenturl") or self.url or self.text("url") or self.system.content_url())

    @cached_property
    def version_url(self) -> str:
        """Where the newest version is told."""
        return self._url(self.text("versionurl") or self.url or self.text("url") or self.system.version_url())

    def _url(self, url: str) -> str:
        from overhaul.dialects.swupd.device.fetching import check_url

        checked = check_url(url, allow_http=self.is_set("allow_insecure_http"))
        port = self.number("port", 0)
        parts = urlsplit(checked)
        if port and parts.scheme in {"http", "https"} and ":" not in parts.netloc.rpartition("@")[2]:
            checked = urlunsplit(parts._replace(netloc=f"{parts.netloc}:{port}"))
        return checked

    @cached_property
    def format_name(self) -> str:
        """The format that is followed."""
        system = System(self.base_root) if self.name else self.system
        return system.format(self.text("format"))

    @cached_property
    def cache(self) -> Cache:
        """The cache of this content."""
        return Cache.of(self.state, self.content_url)

    @cached_property
    def trust(self) -> Trust:
        """What versions are checked with."""
        given = self.text("certpath")
        certificate = self.certificate_override or self.system.certificate(Path(given) if given else None)
        checks = not self.is_set("nosigcheck")
        return Trust.at(certificate, checks_mom=checks, checks_latest=not self.is_set("nosigcheck_latest"))

    @cached_property
    def downloader(self) -> "Downloader":
        """What fetches."""
        from overhaul.dialects.swupd.device.fetching import Downloader, DownloadSettings

        return Downloader(
            DownloadSettings(
                allow_http=self.is_set("allow_insecure_http"),
                max_parallel=self.number("max_parallel_downloads", 15, smallest=1),
                max_retries=self.number("max_retries", 3),
                retry_delay_s=float(min(60, self.number("retry_delay", 10))),
            )
        )

    @cached_property
    def repository(self) -> "Repository":
        """The repository, after the means to trust it are there."""
        from overhaul.dialects.swupd.device.repository import Repository
        from overhaul.dialects.swupd.device.variants import machine_level

        self.trust.check_certificate()
        if not self.trust.checks_mom:
            self.output.warn("signatures are not checked, as --nosigcheck says; anybody may have made what comes")
        elif not self.is_set("ignore_time") and check_clock(System(self.base_root).build_time()):
            self.output.warn("the clock was earlier than the system was built and has been set to that time")
        return Repository(
            self.content_url, self.version_url, self.cache, self.trust, self.downloader, machine_level(self.root)
        )

    @cached_property
    def hashes_paths(self) -> bool:
        """Whether directories hash their path."""
        return self.format_name == "3"

    @cached_property
    def with_xattrs(self) -> bool:
        """Whether extended attributes are part of hashes and content."""
        return self.is_set("xattrs")

    @cached_property
    def classes(self) -> Classes:
        """What may be touched in the root."""
        return Classes(is_stateless=not self.is_set("stateful"), mounts=mount_points(self.root))

    @cached_property
    def objects(self) -> "Objects":
        """The objects of the repository."""
        from overhaul.dialects.swupd.device.objects import Objects

        given = self.text("statedir_cache")
        others = (Cache.of(Path(given), self.content_url).directory, Path(given)) if given else ()
        return Objects(self.repository, self.hashes_paths, self.with_xattrs, others)

    @cached_property
    def applier(self) -> "Applier":
        """What changes the root."""
        from overhaul.dialects.swupd.device.applying import Applier

        return Applier(self.root, self.data, self.cache.staged, self.with_xattrs)

    @contextmanager
    def working(self, *, changes: bool = True) -> Iterator["Record | None"]:
        """Hold the lock and finish what an earlier run left; yield what that was when it changed the system."""
        self.data.prepare()
        with self.data.locked():
            self.cache.prepare(self.state)
            finished: Record | None = None
            if self.data.journal.exists():
                if changes:
                    finished = self._finish_interrupted()
                else:
                    self.output.warn("an interrupted run is still to be finished; the next update or repair does it")
            yield finished

    def _finish_interrupted(self) -> "Record | None":
        record = self.applier.finish_interrupted()
        if record is not None:
            self.output.say("Finished what an interrupted run had prepared.")
        return record

    def report(self, applied: "Applied") -> None:
        """Tell what could not be changed, and what was moved aside."""
        for path, reason in applied.failed.items():
            self.output.fail(f"{os.fsdecode(path)}: {reason}")
        for path in applied.aside:
            self.output.warn(f"{os.fsdecode(path)} keeps what lay in a directory that had to go and is in no manifest")

    def confirms(self, question: str) -> bool:
        """Ask a person; without one the answer is no, unless the options say yes."""
        assume = self.text("assume")
        if assume is not None and assume not in {"yes", "no"}:
            raise WrongUsageError(f"--assume is {assume!r}, which is neither yes nor no")
        if self.is_set("yes") or assume == "yes":
            return True
        if assume == "no" or not sys.stdin.isatty():
            return False
        self.output.say(f"{question} (y/N)")
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
