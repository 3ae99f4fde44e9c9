"""Today's interface from the device's side: overview, indexes, build requests, polling."""

from collections.abc import Mapping
from typing import Any

import msgspec

from overhaul.dialects.asu.device.service import (
    BuildFailedOnServerError,
    Finished,
    Http,
    HttpAnswer,
    Newest,
    OverloadedServerError,
    Progressing,
    RefusedByServerError,
    ServerAnswerError,
    Told,
    Wanted,
    checked_digest,
    checked_directory,
    checked_file,
    quoted,
    texts,
)

_CLIENT = "overhaul/1"
#: Image types a running system can install, the best first.
_TYPES = ("sysupgrade", "combined-efi", "combined", "sdcard", "rootfs")


class _Change(msgspec.Struct, frozen=True):
    revision: int
    source: str | None = None
    target: str | None = None


class _Branch(msgspec.Struct, frozen=True):
    name: str
    path: str
    versions: tuple[str, ...] = ()
    targets: dict[str, str] = {}
    package_changes: tuple[_Change, ...] = ()
    snapshot: bool = False
    enabled: bool = True


class _Overview(msgspec.Struct, frozen=True):
    latest: tuple[str, ...]
    branches: dict[str, _Branch]


class TodayService:
    """A server since 2021."""

    def __init__(self, http: Http, server: str) -> None:
        self._http = http
        self._server = server

    def newest(self, version: str, target: str, revision: str, packages: Mapping[str, str]) -> Newest:
        """Return the newest version of the running branch, or of the next that counts as latest.

        Raises:
            ServerAnswerError: The server has no overview.
            RefusedByServerError: It knows neither the version's branch nor the target.
        """
        if target.startswith("debian/"):
            return _same(version, revision, packages)
        url = f"{self._server}/json/v1/overview.json"
        answer = self._http.ask("GET", url)
        if answer.status != 200:
            raise ServerAnswerError(url=url, reason=f"status {answer.status}")
        try:
            overview = msgspec.json.decode(answer.body, type=_Overview)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ServerAnswerError(url=url, reason=str(error)) from error
        branch = _branch_of(version, overview)
        if branch is None or target not in branch.targets or not branch.versions:
            raise RefusedByServerError(status=404, detail=f"it has nothing for {target} of {version}")
        newest = version if branch.snapshot else branch.versions[0]
        there = self._revision(newest, target)
        is_newer = newest != version or (bool(there) and there != revision)
        replaced = {
            change.source: change.target
            for change in branch.package_changes
            if change.source in packages and _count(revision) < change.revision
        }
        wanted = dict.fromkeys(replaced.get(name, name) for name in packages)
        path = branch.path.replace("{version}", newest)
        versions: dict[str, str] = {}
        arch = branch.targets[target]
        for part in (f"targets/{target}/index.json", f"packages/{arch}-index.json"):
            found = self._http.ask("GET", f"{self._server}/json/v1/{quoted(path, part)}")
            document = found.document(url) if found.status == 200 else {}
            versions.update(texts(document.get("packages") or document))
        return Newest(
            version=newest,
            revision=there,
            is_newer=is_newer,
            packages=tuple(name for name in wanted if name is not None),
            versions=versions,
            replaced={source: to for source, to in replaced.items() if source is not None},
        )

    def request(self, wanted: Wanted) -> Told:
        """Ask for an image."""
        document = {
            "distro": wanted.distribution,
            "version": wanted.version,
            "version_code": wanted.revision,
            "target": wanted.target,
            "profile": wanted.board,
            "packages": wanted.packages,
            "diff_packages": wanted.distribution != "debian",
            "filesystem": wanted.filesystem,
            "client": _CLIENT,
        }
        url = f"{self._server}/api/v1/build"
        return self._told(self._http.ask("POST", url, document), url, wanted)

    def poll(self, name: str, wanted: Wanted) -> Told:
        """Ask how far it is."""
        url = f"{self._server}/api/v1/build/{checked_file(name)}"
        return self._told(self._http.ask("GET", url), url, wanted)

    def _revision(self, version: str, target: str) -> str:
        url = f"{self._server}/api/v1/revision/{quoted(version, target)}"
        answer = self._http.ask("GET", url)
        found = answer.document(url).get("revision", "") if answer.status == 200 else ""
        return found if isinstance(found, str) else ""

    def _told(self, answer: HttpAnswer, url: str, wanted: Wanted) -> Told:
        if answer.status in {503, 529}:
            raise OverloadedServerError(url=url)
        document = answer.document(url)
        if answer.status == 202:
            position = document.get("queue_position")
            state = f"waits, {position} before it" if isinstance(position, int) else ""
            phase = str(document.get("imagebuilder_status") or document.get("detail") or "started")[:100]
            name = checked_file(document.get("request_hash"))
            return Progressing(name=name, state=state or phase.replace("_", " "))
        if answer.status == 200:
            return self._finished(document, wanted)
        detail = _detail(document, answer.status)
        if answer.status >= 500:
            said = f"{document.get('stdout') or ''}\n{document.get('stderr') or ''}"
            raise BuildFailedOnServerError(detail=detail, log=said.strip()[-20_000:])
        raise RefusedByServerError(
            status=answer.status, detail=detail, packages=answer.headers.get("x-unknown-package", "")[:500]
        )

    def _finished(self, document: dict[str, Any], wanted: Wanted) -> Finished:
        url = f"{self._server}/api/v1/build"
        images = document.get("images")
        suitable = [
            image
            for kind in _TYPES
            for image in (images if isinstance(images, list) else [])
            if isinstance(image, dict)
            and image.get("type") == kind
            and (wanted.filesystem is None or image.get("filesystem") in {wanted.filesystem, "", None})
        ]
        if not suitable:
            raise ServerAnswerError(url=url, reason="it made no image that this device can install")
        if wanted.revision and document.get("version_code", wanted.revision) != wanted.revision:
            raise ServerAnswerError(url=url, reason=f"it built {document.get('version_code')!r} and not what was asked")
        directory = checked_directory(document.get("bin_dir"))
        return Finished(
            name=checked_file(document.get("request_hash")),
            directory_url=f"{self._server}/store/{quoted(directory)}",
            file=checked_file(suitable[0].get("name")),
            sha256=checked_digest(suitable[0].get("sha256")),
            manifest=texts(document.get("manifest")),
        )


def _same(version: str, revision: str, packages: Mapping[str, str]) -> Newest:
    """A suite has no higher version: what a new image brings shows when it is built."""
    return Newest(version=version, revision=revision, is_newer=True, packages=tuple(packages), versions={}, replaced={})


def _branch_of(version: str, overview: _Overview) -> _Branch | None:
    enabled = {name: branch for name, branch in overview.branches.items() if branch.enabled}
    for name in (version, version.removesuffix("-SNAPSHOT"), version.rpartition(".")[0]):
        if name in enabled:
            return enabled[name]
    return None


def _count(revision: str) -> int:
    """Return the number in a revision such as `r24106-10cc5fcd00`."""
    digits = revision.removeprefix("r").partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else 0


def _detail(document: dict[str, Any], status: int) -> str:
    detail = document.get("detail") or document.get("message") or f"status {status}"
    if isinstance(detail, list):
        detail = "; ".join(str(one.get("msg", one)) if isinstance(one, dict) else str(one) for one in detail[:5])
    return str(detail)[:1000].rstrip(".")
