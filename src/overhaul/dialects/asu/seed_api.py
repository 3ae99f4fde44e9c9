"""The seed era's interface (2018 and 2019): upgrade-check, upgrade-request, build-request and its look-ups.

Its requests become the same recipes as today's and share their builds. Its hashes have 12 to 32 digits; they only
name what the queue knows by full recipes, so two requests that share one get different builds and different names.
"""

import functools
import re
from collections.abc import Callable

import anyio.to_thread
from starlette.routing import BaseRoute, Route

from overhaul.builds.queue import ClientLimitError, QueueFullError
from overhaul.builds.recipe import public_names
from overhaul.builds.records import BuildRecord
from overhaul.dialects.asu import hashes, seed_answers, seed_images
from overhaul.dialects.asu.files import Answer, listing, missing, send_file
from overhaul.dialects.asu.parts import Parts
from overhaul.dialects.asu.prepared import Ask, Endpoint, Prepared, json_answer, read_body
from overhaul.dialects.asu.refusals import RefusedRequestError
from overhaul.dialects.asu.seed_catalogue import SeedCatalogue
from overhaul.dialects.asu.seed_check import check_upgrade
from overhaul.dialects.asu.seed_images import SeedImage
from overhaul.dialects.asu.seed_request import MalformedError, SeedRequest, parse_seed_request
from overhaul.dialects.asu.seed_resolving import find_asked, seed_recipe
from overhaul.dialects.asu.statistics import Statistics

#: Beginnings of its paths; today's lie below some of them.
PATHS = ("/api/", "/json/", "/download/")

_NAME = re.compile(r"[0-9a-f]{12,64}", re.ASCII)
_SLASHES = re.compile(r"/{2,}")
_FAILLOG = re.compile(r"faillogs/faillog-([0-9a-f]{12,64})\.txt", re.ASCII)
_PAGE = "/firmware"


class SeedApi:
    """The routes of the seed era's interface."""

    def __init__(self, parts: Parts, statistics: Statistics) -> None:
        self._parts = parts
        self._catalogue = SeedCatalogue(parts)
        self._statistics = statistics

    def routes(self) -> list[BaseRoute]:
        """Return the routes; today's must stand before them."""
        post = functools.partial(Endpoint, methods=("POST",))
        asking = [
            route
            for kind, needs_sysupgrade in (("upgrade-request", True), ("build-request", False))
            for route in (
                Route(f"/api/{kind}", post(functools.partial(self._request, needs_sysupgrade=needs_sysupgrade))),
                Route(
                    f"/api/{kind}/{{name}}", Endpoint(functools.partial(self._poll, needs_sysupgrade=needs_sysupgrade))
                ),
            )
        ]
        return [
            *asking,
            Route("/api/upgrade-check", post(self._check)),
            Route("/api/upgrade-check/{name}", Endpoint(functools.partial(self._poll, needs_sysupgrade=True))),
            Route("/api/image/{name}", Endpoint(functools.partial(self._in_thread, self._image))),
            Route("/api/manifest/{name}", Endpoint(functools.partial(self._in_thread, self._manifest))),
            Route("/api/v1/packages_hash/{name}", Endpoint(functools.partial(self._in_thread, self._package_set))),
            *(
                Route(path, Endpoint(functools.partial(self._catalogue.answer, make)))
                for path, make in self._catalogue.documents().items()
            ),
            *(
                Route(f"/api/v1/stats/{path}", Endpoint(functools.partial(_statistic, make)))
                for path, make in self._numbers().items()
            ),
            Route("/json/{path:path}", Endpoint(functools.partial(self._tree, as_json=True))),
            Route("/download/{path:path}", Endpoint(functools.partial(self._tree, as_json=False))),
            Route("/api/", Endpoint(_to_page)),
            Route("/stats/", Endpoint(_to_page)),
        ]

    async def _check(self, ask: Ask) -> Prepared:
        body = await read_body(ask.receive)
        return await anyio.to_thread.run_sync(self._checked, body)

    def _checked(self, body: bytes) -> Prepared:
        try:
            return check_upgrade(parse_seed_request(body), self._parts.catalogue.now())
        except MalformedError:
            return malformed()
        except RefusedRequestError as error:
            return self._refused(error)

    async def _request(self, ask: Ask, *, needs_sysupgrade: bool) -> Prepared:
        body = await read_body(ask.receive)
        try:
            request = parse_seed_request(body)
        except MalformedError:
            return malformed()
        if request.request_hash is not None:
            work = functools.partial(self._look_up, request.request_hash, needs_sysupgrade=needs_sysupgrade)
            return await anyio.to_thread.run_sync(work)
        digest = request.digest()
        ready = self._parts.memory.get(_interface(needs_sysupgrade=needs_sysupgrade), digest[:12], request)
        if ready is not None:
            return ready
        submit = functools.partial(
            self._submit, request, digest, client=self._parts.client_of(ask), needs_sysupgrade=needs_sysupgrade
        )
        return await anyio.to_thread.run_sync(submit)

    def _submit(self, request: SeedRequest, digest: str, *, client: str, needs_sysupgrade: bool) -> Prepared:
        parts, catalogue = self._parts, self._parts.catalogue.now()
        try:
            asked = find_asked(request, catalogue)
            recipe = seed_recipe(request, asked, catalogue)
            submitted = parts.queue.submit(
                recipe, names=public_names(digest, digits=12), client=client, client_label="seed/1"
            )
        except RefusedRequestError as error:
            return self._refused(error)
        except (QueueFullError, ClientLimitError) as error:
            return seed_answers.overloaded(error.waiting)
        if request.wanted:
            name = seed_images.packages_name(hashes.seed_packages_hash(request.wanted))
            parts.queue.bind(name, submitted.build.recipe_key)
        source = (asked.distribution.name, asked.version.name.lower())
        told = self._answer(submitted.build, submitted.name, source, needs_sysupgrade=needs_sysupgrade)
        if submitted.name == digest[:12]:
            parts.memory.keep(
                _interface(needs_sysupgrade=needs_sysupgrade), digest[:12], request, submitted.build, told
            )
        return told

    async def _poll(self, ask: Ask, *, needs_sysupgrade: bool) -> Prepared:
        name = ask.path["name"]
        interface = f"GET {_interface(needs_sysupgrade=needs_sysupgrade)}"
        ready = self._parts.memory.get(interface, name, name)
        if ready is not None:
            return ready
        work = functools.partial(self._look_up, name, needs_sysupgrade=needs_sysupgrade)
        return await anyio.to_thread.run_sync(work)

    def _look_up(self, name: str, *, needs_sysupgrade: bool) -> Prepared:
        build = self._named(name)
        if build is None:
            return seed_answers.unknown("request")
        source = seed_images.sources_of(build, self._parts.catalogue.now())[0]
        told = self._answer(build, name, source, needs_sysupgrade=needs_sysupgrade)
        self._parts.memory.keep(f"GET {_interface(needs_sysupgrade=needs_sysupgrade)}", name, name, build, told)
        return told

    def _answer(self, build: BuildRecord, name: str, source: tuple[str, str], *, needs_sysupgrade: bool) -> Prepared:
        image = None
        if build.result is not None:
            image = SeedImage(build=build, distro=source[0], version=source[1])
            image.bind(self._parts.queue)
        position = self._parts.queue.position(build.build_id)
        return seed_answers.answer(build, image, name=name, position=position, needs_sysupgrade=needs_sysupgrade)

    def _named(self, name: str) -> BuildRecord | None:
        """Return the build that answers a request of that name now."""
        if _NAME.fullmatch(name) is None:
            return None
        build = self._parts.queue.find_named(name)
        return build if build is not None and build.answers(self._parts.clock()) else None

    def _image(self, ask: Ask) -> Prepared:
        image = seed_images.find_image(self._parts.queue, self._parts.catalogue.now(), ask.path["name"])
        return seed_answers.unknown("image") if image is None else json_answer(200, self._catalogue.image(image))

    def _manifest(self, ask: Ask) -> Prepared:
        name = ask.path["name"]
        build = self._parts.queue.find_named(seed_images.manifest_name(name))
        if build is None or build.result is None or build.result.manifest_sha256[:15] != name:
            return seed_answers.unknown("manifest")
        return json_answer(200, build.result.manifest)

    def _package_set(self, ask: Ask) -> Prepared:
        name = ask.path["name"]
        build = self._parts.queue.find_named(seed_images.packages_name(name))
        if build is None:
            return seed_answers.unknown("package set")
        return json_answer(200, sorted(set(build.recipe.packages)))

    async def _in_thread(self, work: "Callable[[Ask], Prepared]", ask: Ask) -> Prepared:
        return await anyio.to_thread.run_sync(work, ask)

    async def _tree(self, ask: Ask, *, as_json: bool) -> Answer:
        # A client of 2019 puts two slashes where one belongs, and does not follow a redirect.
        path = _SLASHES.sub("/", ask.path["path"]).removeprefix("/")
        found = await anyio.to_thread.run_sync(functools.partial(self._find, path, as_json=as_json))
        return await send_file(self._parts.store, *found) if isinstance(found, tuple) else found

    def _find(self, path: str, *, as_json: bool) -> Prepared | tuple[str, str]:
        faillog = _FAILLOG.fullmatch(path)
        if faillog is not None:
            build = self._named(faillog[1])
            return missing() if build is None or build.failure is None else _text(_log_of(build))
        directory, _slash, file = path.rpartition("/")
        image = seed_images.find_directory(self._parts.queue, self._parts.catalogue.now(), directory)
        if image is None or image.build.result is None:
            return missing()
        if file == image.log_name:
            return _text(_log_of(image.build))
        if file:
            return image.build.result.artefact, file
        entries = listing(self._parts.store, image.build)
        if entries is None:
            return missing()
        return json_answer(200, entries) if as_json else _html(entries)

    def _numbers(self) -> "dict[str, Callable[[], object]]":
        counted = self._statistics

        def images() -> dict[str, int]:
            total = len(counted.builds(days=365))
            return {
                "total": total,
                "stored": self._parts.store.usage().artefacts,
                "requested": self._parts.queue.waiting(),
            }

        return {
            "popular_packages": lambda: [
                {"package_name": name, "count": count} for name, count in counted.popular_packages()[:50]
            ],
            "popular_targets": lambda: [
                {"count": count, "build_seconds": round(seconds), "target": target}
                for target, count, seconds in counted.popular_targets()[:50]
            ],
            "images": images,
            "image_stats": images,
            "packages": self._catalogue.package_count,
            "images_latest": self._catalogue.latest_images,
            "fails_latest": self._catalogue.latest_failures,
        }

    def _refused(self, error: RefusedRequestError) -> Prepared:
        return seed_answers.refusal(error, legacy_status=self._parts.settings.seed_legacy_status)


def malformed() -> Prepared:
    """Return the answer to what is no request, or lacks what every such request has."""
    return Prepared(400, b"[]")


def _interface(*, needs_sysupgrade: bool) -> str:
    return "seed upgrade" if needs_sysupgrade else "seed build"


async def _statistic(make: "Callable[[], object]", _ask: Ask) -> Prepared:
    return json_answer(200, await anyio.to_thread.run_sync(make))


async def _to_page(_ask: Ask) -> Prepared:
    return Prepared(302, b"", headers={"Location": _PAGE})


def _text(text: str) -> Prepared:
    headers = {"X-Content-Type-Options": "nosniff"}
    return Prepared(200, text.encode(errors="replace"), headers=headers, media_type="text/plain; charset=utf-8")


def _html(entries: list[dict[str, object]]) -> Prepared:
    # Names in the store are made of letters, digits and a few signs that mean nothing in HTML.
    lines = "".join(f'<li><a href="{one["name"]}">{one["name"]}</a> {one["size"]}</li>\n' for one in entries)
    body = f"<!doctype html>\n<title>Files</title>\n<ul>\n{lines}</ul>\n"
    return Prepared(200, body.encode(), media_type="text/html; charset=utf-8")


def _log_of(build: BuildRecord) -> str:
    if build.result is not None:
        parts = (" ".join(build.result.command), build.result.stdout, build.result.stderr)
    elif build.failure is not None:
        said = f"{build.failure.stderr}\n{build.failure.detail}"
        parts = (" ".join(build.failure.command), build.failure.stdout, said)
    else:
        parts = ("", "", "")
    titles = ("### BUILD COMMAND", "### STDOUT", "### STDERR")
    return "".join(f"{title}\n{part}\n\n" for title, part in zip(titles, parts, strict=True))
