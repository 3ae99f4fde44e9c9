"""The pages for people: one to choose a device and its packages and to follow the build, one for the operator.

Everything is rendered here and works without a script: forms are forms, a build's page reloads itself. With scripts
(htmx, packaged with us) packages are looked for while typing, and the queue and the log move by themselves. No style
or script stands in a page and nothing is loaded from elsewhere, so the content policy forbids everything else.

An address with a build's full name is the share link. Whoever has it can fetch the image; no page lists it.
"""

import functools
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qs

import anyio.to_thread
import jinja2
import msgspec
from starlette.routing import BaseRoute, Route

import overhaul
from overhaul.builds.queue import ClientLimitError, QueueFullError
from overhaul.builds.records import BuildRecord, BuildState
from overhaul.dialects.asu.catalogue import OPENWRT, Catalogue, System
from overhaul.dialects.asu.parts import Parts
from overhaul.dialects.asu.prepared import Ask, Endpoint, Prepared, read_body
from overhaul.dialects.asu.refusals import ImpossiblePackagesError, RefusedRequestError
from overhaul.dialects.asu.resolving import default_packages, recipe_of
from overhaul.dialects.asu.statistics import Statistics, failure_text
from overhaul.dialects.asu.today_request import InvalidRequestError, parse_request, request_model

PATHS = ("/firmware", "/builds")

_DIRECTORY = Path(__file__).parent
_TYPES = {".css": "text/css", ".js": "text/javascript"}
_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_SHOWN_DEVICES = 40
_SHOWN_PACKAGES = 20
_SHOWN_BUILDS = 20
_LOG_CHARS = 20_000
_IMMUTABLE = "public, max-age=31536000, immutable"


class Pages:
    """Renders the pages."""

    def __init__(self, parts: Parts, statistics: Statistics) -> None:
        self._parts = parts
        self._statistics = statistics
        self._model = request_model(parts.settings)
        self._assets: dict[str, Prepared] = {}
        self._names: dict[str, str] = {}
        for path in sorted((_DIRECTORY / "static").iterdir()):
            if path.suffix in _TYPES:
                body = path.read_bytes()
                name = f"{path.stem}.{hashlib.sha256(body).hexdigest()[:16]}{path.suffix}"
                headers = {"X-Content-Type-Options": "nosniff"}
                media = _TYPES[path.suffix]
                self._assets[name] = Prepared(200, body, headers=headers, media_type=media, cache_control=_IMMUTABLE)
                self._names[path.name] = name
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_DIRECTORY / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(size=_size, share=_share)
        self._templates.globals.update(
            asset=lambda name: f"/firmware/assets/{self._names[name]}", overhaul_version=overhaul.__version__
        )

    def routes(self) -> list[BaseRoute]:
        """Return the routes of the pages."""
        return [
            Route("/firmware", Endpoint(_in_thread(self._search))),
            Route("/firmware/assets/{name}", Endpoint(self._asset)),
            Route("/firmware/packages", Endpoint(_in_thread(self._packages))),
            Route("/firmware/device/{version}/{target}/{subtarget}/{profile}", Endpoint(_in_thread(self._device))),
            Route("/firmware/build", Endpoint(self._submit, methods=("POST",))),
            Route("/firmware/build/{name}", Endpoint(_in_thread(self._build))),
            Route("/firmware/build/{name}/now", Endpoint(_in_thread(self._build_now))),
            Route("/builds", Endpoint(_in_thread(self._operator))),
            Route("/builds/now", Endpoint(_in_thread(self._operator_now))),
        ]

    async def _asset(self, ask: Ask) -> Prepared:
        return self._assets.get(ask.path["name"]) or Prepared(404, b"Not Found", media_type="text/plain")

    def _page(self, template: str, /, *, status: int = 200, **facts: object) -> Prepared:
        return self._rendered(template, facts, status=status)

    def _rendered(self, template: str, facts: Mapping[str, object], *, status: int = 200) -> Prepared:
        body = self._templates.get_template(template).render(facts).encode(errors="replace")
        return Prepared(status, body, headers=_SECURITY, media_type="text/html; charset=utf-8")

    def _search(self, ask: Ask) -> Prepared:
        query = _query(ask)
        catalogue = self._parts.catalogue.now()
        systems = [system for system in catalogue.systems if system.distribution == OPENWRT]
        latest = catalogue.latest[0] if catalogue.latest else (systems[0].version if systems else "")
        version = query.get("version", latest)
        system = catalogue.system(OPENWRT, version)
        words = query.get("q", "").lower().split()[:8]
        found = [] if system is None or not words else _devices(catalogue, system, words)
        facts = {
            "versions": [one.version for one in systems],
            "version": version,
            "q": query.get("q", ""),
            "devices": found[:_SHOWN_DEVICES],
            "total": len(found),
        }
        return self._rendered("found.html" if ask.headers.get("hx-request") else "firmware.html", facts)

    def _device(self, ask: Ask) -> Prepared:
        path = ask.path
        target = f"{path['target']}/{path['subtarget']}"
        return self._form(path["version"], target, path["profile"])

    def _form(
        self,
        version: str,
        target: str,
        profile: str,
        *,
        packages: str | None = None,
        defaults: str = "",
        problem: RefusedRequestError | None = None,
        sentence: str = "",
        status: int = 200,
    ) -> Prepared:
        catalogue = self._parts.catalogue.now()
        system = catalogue.system(OPENWRT, version)
        profiles = None if system is None else catalogue.profiles(system, target)
        known = None if profiles is None else profiles.profiles.get(profile)
        if system is None or profiles is None or known is None:
            return self._page("problem.html", status=404, sentence="This device is not known here.", ask_again=True)
        given = default_packages(catalogue, system, target, profile)
        return self._page(
            "device.html",
            status=status,
            version=version,
            target=target,
            profile=profile,
            title=known.title or profile,
            revision=profiles.version_code,
            packages=" ".join(given) if packages is None else packages,
            defaults=defaults,
            settings=self._parts.settings,
            problems=problem.problems if isinstance(problem, ImpossiblePackagesError) else (),
            sentence=sentence,
            others=[
                one.version
                for one in catalogue.systems
                if one.distribution == OPENWRT and profile in catalogue.aliases(one, target)
            ],
        )

    def _packages(self, ask: Ask) -> Prepared:
        """Answer with packages whose names hold what is typed: the last word of it."""
        query = _query(ask)
        catalogue = self._parts.catalogue.now()
        system = catalogue.system(OPENWRT, query.get("version", ""))
        index = None if system is None else catalogue.packages(system, query.get("target", ""))
        wanted = (query.get("q", "").split() or [""])[-1].lower()
        found = []
        if index is not None and len(wanted) >= 2:
            names = sorted(index.versions, key=lambda name: (not name.startswith(wanted), name))
            found = [
                {"name": name, "version": index.versions[name], "size": index.sizes.get(name)}
                for name in names
                if wanted in name.lower()
            ]
        return self._page(
            "packages.html", found=found[:_SHOWN_PACKAGES], total=len(found), wanted=wanted, query=query,
            is_known=index is not None, is_fragment="hx-request" in ask.headers,
        )  # fmt: skip

    async def _submit(self, ask: Ask) -> Prepared:
        body = await read_body(ask.receive)
        client = self._parts.client_of(ask)
        return await anyio.to_thread.run_sync(self._submitted, body, client)

    def _submitted(self, body: bytes, client: str) -> Prepared:
        form = _read(body.decode("latin-1"), limit=64 * 1024)
        packages = form.get("packages", "")
        document: dict[str, object] = {
            "version": form.get("version", ""),
            "target": form.get("target", ""),
            "profile": form.get("profile", ""),
            "packages": list(dict.fromkeys(packages.split())),
            "diff_packages": True,
        }
        if form.get("defaults", "").strip():
            document["defaults"] = form["defaults"].replace("\r\n", "\n")
        if form.get("rootfs_size_mb", "").strip():
            document["rootfs_size_mb"] = form["rootfs_size_mb"].strip()
        again = functools.partial(
            self._form,
            form.get("version", ""),
            form.get("target", ""),
            form.get("profile", ""),
            packages=packages,
            defaults=form.get("defaults", ""),
        )
        try:
            request = parse_request(self._model, msgspec.json.encode(document))
            recipe = recipe_of(request, self._parts.catalogue.now())
            submitted = self._parts.queue.submit(
                recipe, names=(request.request_hash(),), client=client, client_label="page/1"
            )
        except InvalidRequestError as error:
            wrong = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors)
            return again(sentence=wrong, status=422)
        except RefusedRequestError as error:
            return again(problem=error, sentence=error.detail, status=422)
        except (QueueFullError, ClientLimitError) as error:
            return again(sentence=str(error), status=503)
        return Prepared(303, b"", headers={**_SECURITY, "Location": f"/firmware/build/{submitted.name}"})

    def _build(self, ask: Ask) -> Prepared:
        return self._of_build(ask, "build.html")

    def _build_now(self, ask: Ask) -> Prepared:
        return self._of_build(ask, "build_now.html")

    def _of_build(self, ask: Ask, template: str) -> Prepared:
        name = ask.path["name"]
        build = self._parts.queue.find_named(name) if len(name) == 64 else None
        if build is None or not build.answers(self._parts.clock()):
            sentence = "This build is not known here, or it was made too long ago. Ask for it again."
            return self._page("problem.html", status=404, sentence=sentence, ask_again=True)
        log = self._parts.queue.read_log(build.build_id).text
        sizes = {} if build.result is None else {file.name: file.size_bytes for file in build.result.files}
        return self._page(
            template,
            name=name,
            build=build,
            title=self._title(build),
            position=self._parts.queue.position(build.build_id),
            log=log[-_LOG_CHARS:],
            sizes=sizes,
            reason=failure_text(build) if build.state is BuildState.FAILED else "",
        )

    def _title(self, build: BuildRecord) -> str:
        recipe, catalogue = build.recipe, self._parts.catalogue.now()
        system = catalogue.system(recipe.distribution, recipe.version)
        profiles = None if system is None else catalogue.profiles(system, recipe.target)
        known = None if profiles is None else profiles.profiles.get(recipe.profile)
        return (known.title if known else "") or recipe.profile

    def _operator(self, _ask: Ask) -> Prepared:
        return self._rendered("operator.html", {**self._operation(), **self._plots()})

    def _operator_now(self, _ask: Ask) -> Prepared:
        return self._rendered("operator_now.html", self._operation())

    def _operation(self) -> dict[str, object]:
        queue = self._parts.queue
        running = queue.recent(limit=_SHOWN_BUILDS, states=(BuildState.STARTED,))
        generation = self._parts.catalogue.now().generation
        return {
            "waiting": queue.waiting(),
            "queued": queue.recent(limit=_SHOWN_BUILDS, states=(BuildState.QUEUED,)),
            "running": running,
            "workers": sorted({build.worker for build in running if build.worker}),
            "usage": self._parts.store.usage(),
            "now": self._parts.clock(),
            "updated_at": generation.updated_at,
        }

    def _plots(self) -> dict[str, object]:
        statistics = self._statistics
        packages = statistics.popular_packages()[:_SHOWN_BUILDS]
        targets = statistics.popular_targets()[:_SHOWN_BUILDS]
        return {
            "per_day": statistics.per_day(),
            "packages": packages,
            "targets": targets,
            "failures": [(build, failure_text(build)) for build in statistics.failures(_SHOWN_BUILDS)],
            "most_packages": max((count for _name, count in packages), default=1),
            "most_targets": max((count for _name, count, _seconds in targets), default=1),
        }


def _in_thread(work: Callable[[Ask], Prepared]) -> Callable[[Ask], Awaitable[Prepared]]:
    async def answer(ask: Ask) -> Prepared:
        return await anyio.to_thread.run_sync(work, ask)

    return answer


def _devices(catalogue: Catalogue, system: System, words: list[str]) -> list[dict[str, str]]:
    found = []
    for target in catalogue.offered_targets(system):
        profiles = catalogue.profiles(system, target)
        for name, profile in (profiles.profiles if profiles else {}).items():
            text = f"{profile.title} {name} {target}".lower()
            if all(word in text for word in words):
                found.append({"title": profile.title or name, "target": target, "profile": name})
    return sorted(found, key=lambda one: one["title"].lower())


def _query(ask: Ask) -> Mapping[str, str]:
    return _read(ask.scope["query_string"].decode("latin-1"), limit=500)


def _read(text: str, *, limit: int) -> dict[str, str]:
    try:
        read = parse_qs(text, max_num_fields=20, errors="replace", keep_blank_values=True)
    except ValueError:
        return {}
    return {key: values[0][:limit] for key, values in read.items()}


def _size(amount: float | None) -> str:
    if amount is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}" if whole else "0"
