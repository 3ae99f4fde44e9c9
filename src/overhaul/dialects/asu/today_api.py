"""Today's interface (2021 and later): builds by full request hash, catalogue documents, statistics.

What is asked for most is answered from memory: documents of the catalogue, and builds that are over. Everything else
happens in a thread, with the catalogue and the queue alone; upstream is never asked while a client waits.
"""

import functools
import re
from collections.abc import Callable

import anyio.to_thread
from starlette.routing import BaseRoute, Route

from overhaul.builds.queue import ClientLimitError, QueueFullError
from overhaul.dialects.asu.catalogue_documents import CatalogueDocuments
from overhaul.dialects.asu.files import StoreFiles
from overhaul.dialects.asu.names import branch_of, is_package, is_target
from overhaul.dialects.asu.parts import Parts
from overhaul.dialects.asu.prepared import Ask, Endpoint, Prepared, header_text, json_answer, read_body
from overhaul.dialects.asu.refusals import ImpossiblePackagesError, RefusedRequestError
from overhaul.dialects.asu.resolving import recipe_of
from overhaul.dialects.asu.statistics import Statistics
from overhaul.dialects.asu.today_answers import answer, not_found
from overhaul.dialects.asu.today_request import BuildRequest, InvalidRequestError, parse_request, request_model

#: As an address without what is asked for, for the server that hands requests on.
PATHS = ("/api/v1/", "/json/v1/", "/store/", "/api/overview", "/api/latest", "/overview")

_INTERFACE = "today"
#: A full public name, or the key of a recipe whose public name was taken.
_NAME = re.compile(r"[0-9a-f]{64}", re.ASCII)
_AUC = re.compile(r"(?:[^\s()]*/)?(auc) \(([A-Za-z0-9_.+-]{1,40})\)", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9_.+ -]{1,40}/[A-Za-z0-9_.+~-]{1,40}", re.ASCII)
_UNKNOWN_CLIENT = "unknown/0"


class TodayApi:
    """The routes of today's interface."""

    def __init__(self, parts: Parts, statistics: Statistics) -> None:
        self._parts = parts
        self._model = request_model(parts.settings)
        self._documents = CatalogueDocuments()
        self._statistics = statistics

    def routes(self) -> list[BaseRoute]:
        """Return the routes, the busiest first."""
        get = Endpoint
        permanent: dict[str, str] = {
            "/api/v1/latest": "/json/v1/latest.json",
            "/api/latest": "/json/v1/latest.json",
            "/api/v1/overview": "/json/v1/overview.json",
            "/api/overview": "/json/v1/overview.json",
            "/overview": "/json/v1/overview.json",
        }
        files = StoreFiles(self._parts.store)
        return [
            Route("/api/v1/build/{name}", get(self._poll)),
            Route("/api/v1/build", get(self._build, methods=("POST",))),
            Route("/json/v1/{path:path}", get(self._document)),
            Route("/store/{artefact}/{file}", get(files.answer)),
            Route("/api/v1/build/{name}/log", get(self._log)),
            Route("/api/v1/revision/{version}/{target}/{subtarget}", get(self._revision)),
            *(Route(path, get(functools.partial(_moved, to))) for path, to in permanent.items()),
            # The 2020 generation.
            Route("/api/build", get(self._build, methods=("POST",))),
            Route("/api/build/{name}", get(self._poll)),
            *(
                Route(f"/api/v1/{path}", get(functools.partial(self._statistic, make)))
                for path, make in self._statistics.today().items()
            ),
        ]

    async def _build(self, ask: Ask) -> Prepared:
        body = await read_body(ask.receive)
        try:
            request = parse_request(self._model, body)
        except InvalidRequestError as error:
            return _invalid(error)
        name = request.request_hash()
        asked = request.model_copy(update={"client": None})
        ready = self._parts.memory.get(_INTERFACE, name, asked)
        if ready is not None:
            return ready
        client, label = self._parts.client_of(ask), client_label(request.client, ask.headers.get("user-agent", ""))
        work = functools.partial(self._submit, request, asked, name=name, client=client, label=label)
        return await anyio.to_thread.run_sync(work)

    def _submit(self, request: BuildRequest, asked: object, *, name: str, client: str, label: str) -> Prepared:
        parts = self._parts
        try:
            recipe = recipe_of(request, parts.catalogue.now())
            submitted = parts.queue.submit(recipe, names=(name,), client=client, client_label=label)
        except ImpossiblePackagesError as error:
            return _impossible(error)
        except RefusedRequestError as error:
            return json_answer(400, {"detail": error.detail, "status": 400})
        except (QueueFullError, ClientLimitError) as error:
            detail = f"server overload, queue contains too many build requests: {error.waiting}"
            document = {"status": 529, "title": "Server overloaded", "detail": detail}
            return json_answer(529, document, Retry_After="300")
        build = submitted.build
        told = answer(build, name=submitted.name, position=parts.queue.position(build.build_id))
        if submitted.name == name:
            parts.memory.keep(_INTERFACE, name, asked, build, told)
        return told

    async def _poll(self, ask: Ask) -> Prepared:
        name = ask.path["name"]
        if _NAME.fullmatch(name) is None:
            return not_found()
        ready = self._parts.memory.get(_INTERFACE, f"GET {name}", name)
        if ready is not None:
            return ready
        return await anyio.to_thread.run_sync(self._look_up, name)

    def _look_up(self, name: str) -> Prepared:
        parts = self._parts
        build = parts.queue.find_named(name)
        if build is None or not build.answers(parts.clock()):
            return not_found()
        told = answer(build, name=name, position=parts.queue.position(build.build_id))
        parts.memory.keep(_INTERFACE, f"GET {name}", name, build, told)
        return told

    async def _log(self, ask: Ask) -> Prepared:
        """Answer with the live log from `offset` on, as plain text; `X-Next-Offset` is where the next piece begins."""
        name = ask.path["name"]
        offset = _number(ask, "offset", default=0, largest=1 << 40)
        if _NAME.fullmatch(name) is None or offset is None:
            return not_found()
        return await anyio.to_thread.run_sync(self._read_log, name, offset)

    def _read_log(self, name: str, offset: int) -> Prepared:
        build = self._parts.queue.find_named(name)
        if build is None:
            return not_found()
        part = self._parts.queue.read_log(build.build_id, offset=offset)
        headers = {"X-Next-Offset": str(part.next_offset), "X-Imagebuilder-Status": build.phase.value}
        body = part.text.encode(errors="replace")
        return Prepared(200, body, headers=headers, media_type="text/plain; charset=utf-8")

    async def _document(self, ask: Ask) -> Prepared:
        path = ask.path["path"]
        catalogue = self._parts.catalogue.now()
        ready = self._documents.ready(catalogue, path)
        if ready is None:
            ready = await anyio.to_thread.run_sync(self._documents.make, catalogue, path)
        return ready or json_answer(404, {"detail": "Not Found", "status": 404})

    async def _revision(self, ask: Ask) -> Prepared:
        version, target = ask.path["version"], f"{ask.path['target']}/{ask.path['subtarget']}"
        return await anyio.to_thread.run_sync(self._find_revision, version, target)

    def _find_revision(self, version: str, target: str) -> Prepared:
        catalogue = self._parts.catalogue.now()
        if branch_of(version, catalogue.settings.branches) is None:
            return json_answer(400, {"detail": f"Unsupported version: {version[:128]}", "status": 400})
        system = catalogue.system("openwrt", version)
        profiles = None if system is None or not is_target(target) else catalogue.profiles(system, target)
        if profiles is None:
            detail = f"Failed to fetch revision for {version[:128]}/{target[:128]}"
            return json_answer(404, {"detail": detail, "status": 404})
        return json_answer(200, {"revision": profiles.version_code})

    async def _statistic(self, make: "Callable[[str, int], object]", ask: Ask) -> Prepared:
        branch = _query(ask, "branch")
        count = _number(ask, "n", default=30, largest=500)
        if count is None:
            return json_answer(422, {"detail": [_not_a_number("n")]}, X_Unknown_Package="none")
        made = await anyio.to_thread.run_sync(make, branch, count)
        if isinstance(made, str):
            return Prepared(200, made.encode(errors="replace"), media_type="text/plain; charset=utf-8")
        return json_answer(200, made)


def client_label(named: str | None, user_agent: str) -> str:
    """Return what counts as the client's name and version; anonymous, and harmless wherever it is shown."""
    if named is not None and _LABEL.fullmatch(named):
        return named
    found = _AUC.search(user_agent)
    return f"{found[1]}/{found[2]}" if found else _UNKNOWN_CLIENT


def _invalid(error: InvalidRequestError) -> Prepared:
    named = ", ".join(name for name in error.packages if is_package(name)) or "none"
    # A client takes the header from every 422 without looking whether it is there.
    return Prepared(422, error.body, headers={"X-Unknown-Package": named})


def _impossible(error: ImpossiblePackagesError) -> Prepared:
    document = {
        "status": 422,
        "title": "Impossible package selection",
        "detail": f"Error: {error.detail}",
        "packages": [
            {"package": one.package, "reason": one.reason, "replacement": one.replacement} for one in error.problems
        ],
        "stdout": "",
        "stderr": "\n".join(
            f"{one.package}: {one.reason}" + (f"; ask for {one.replacement} instead" if one.replacement else "")
            for one in error.problems
        ),
    }
    return json_answer(422, document, X_Unknown_Package=", ".join(error.packages))


async def _moved(to: str, _ask: Ask) -> Prepared:
    return Prepared(301, b"", headers={"Location": to})


def _query(ask: Ask, key: str) -> str:
    from urllib.parse import parse_qs

    found = parse_qs(ask.scope["query_string"].decode("latin-1"), max_num_fields=20, errors="replace").get(key, [""])
    return header_text(found[0])[:128]


def _number(ask: Ask, key: str, *, default: int, largest: int) -> int | None:
    try:
        text = _query(ask, key)
    except ValueError:
        return None
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        return None
    return min(int(text), largest)


def _not_a_number(key: str) -> dict[str, object]:
    return {"type": "int_parsing", "loc": ["query", key], "msg": "Input should be a valid integer", "input": ""}
