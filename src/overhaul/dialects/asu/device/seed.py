"""The seed era's interface from the device's side: upgrade-check, upgrade-request, polling."""

from collections.abc import Mapping

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
    checked_directory,
    checked_file,
    quoted,
)

#: What such a server answers to a build that failed.
_FAILED = frozenset({409, 413, 500, 501})


class SeedService:
    """A server of 2018 or 2019."""

    def __init__(self, http: Http, server: str, *, distribution: str) -> None:
        self._http = http
        self._server = server
        self._distribution = distribution

    def newest(self, version: str, target: str, revision: str, packages: Mapping[str, str]) -> Newest:
        """Return what upgrade-check says."""
        url = f"{self._server}/api/upgrade-check"
        document = {
            "distro": self._distribution,
            "version": version,
            "target": target,
            "revision": revision,
            "installed": dict(packages),
            "upgrade_packages": 1,
        }
        answer = self._http.ask("POST", url, document)
        if answer.status == 204:
            return Newest(
                version=version, revision=revision, is_newer=False, packages=tuple(packages), versions={}, replaced={}
            )
        self._refuse(answer, url)
        told = answer.document(url)
        new = [name for name in told.get("packages") or packages if isinstance(name, str)]
        upgrades = told.get("upgrades") or {}
        gone = sorted(set(packages) - set(new)) if told.get("packages") else []
        newest = told.get("version")
        return Newest(
            version=newest if isinstance(newest, str) else version,
            revision=str(told.get("revision") or ""),
            is_newer=True,
            packages=tuple(new),
            versions={
                name: str(pair[0]) for name, pair in upgrades.items() if isinstance(pair, list) and len(pair) == 2
            },
            replaced=dict.fromkeys(gone),
        )

    def request(self, wanted: Wanted) -> Told:
        """Ask for an image."""
        url = f"{self._server}/api/upgrade-request"
        document = {
            "distro": self._distribution,
            "version": wanted.version,
            "target": wanted.target,
            "board": wanted.board,
            "packages": wanted.packages,
        }
        return self._told(self._http.ask("POST", url, document), url)

    def poll(self, name: str, wanted: Wanted) -> Told:  # noqa: ARG002 - this era's answers tell all
        """Ask how far it is."""
        url = f"{self._server}/api/upgrade-request/{checked_file(name)}"
        return self._told(self._http.ask("GET", url), url)

    def _told(self, answer: HttpAnswer, url: str) -> Told:
        if answer.status == 202:
            status = answer.headers.get("x-imagebuilder-status", "")[:40]
            position = answer.headers.get("x-build-queue-position", "")
            waits = f"waits, {position[:9]} before it" if status == "queue" and position else ""
            name = checked_file(answer.document(url).get("request_hash"))
            return Progressing(name=name, state=waits or status or "started")
        self._refuse(answer, url)
        document = answer.document(url)
        files = str(document.get("files", "")).strip("/")
        return Finished(
            name=checked_file(document.get("request_hash")),
            directory_url=f"{self._server}/{quoted(checked_directory(files))}",
            file=checked_file(document.get("sysupgrade")),
            sha256=None,
            manifest={},
        )

    def _refuse(self, answer: HttpAnswer, url: str) -> None:
        if answer.status == 200:
            return
        if answer.status in {502, 503}:
            raise OverloadedServerError(url=url)
        if answer.status < 400:
            raise ServerAnswerError(url=url, reason=f"status {answer.status}")
        try:
            said = answer.document(url).get("error")
        except ServerAnswerError:
            said = None
        detail = str(said or f"status {answer.status}")[:1000].rstrip(".")
        if answer.status in _FAILED:
            raise BuildFailedOnServerError(detail=detail, log="")
        raise RefusedByServerError(
            status=answer.status, detail=detail, packages=answer.headers.get("x-unknown-package", "")[:500]
        )
