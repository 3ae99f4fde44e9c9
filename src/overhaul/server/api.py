"""The JSON interface, health and metrics.

    GET  /api/v1/releases           published releases; ?product= and ?channel= narrow it down
    GET  /api/v1/channels           channels with their rollouts, checkpoints and recalls; ?product=
    POST /api/v1/reports            what a device tells, when its owner opted in
    GET  /api/v1/reports/summary    the reports of the last days, counted
    GET  /health/live, /health/ready, /metrics

Nothing here decides what a device installs: that is in the signed policy, which devices read for themselves.
"""

import hashlib
import math
from typing import Annotated, Any

import anyio.to_thread
import msgspec
from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from overhaul.server.allowance import Allowance
from overhaul.server.caching import REVALIDATE, etag_matches
from overhaul.server.health import Readiness
from overhaul.server.parts import Parts
from overhaul.server.reports import DeviceReport
from overhaul.server.views import channel_views, release_views

#: The largest report; a true one has about 400 bytes.
MAX_REPORT_BYTES = 4096
#: No true length has more.
_MAX_DIGITS = 40

_REPORT_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": DeviceReport.model_json_schema()}},
    }
}
_Name = Annotated[str | None, Query(max_length=64)]


def api_routes(parts: Parts) -> APIRouter:
    """Return the routes of the JSON interface."""
    router = APIRouter(prefix="/api/v1", default_response_class=Response)

    @router.get("/releases", summary="Published releases")
    async def releases(request: Request, product: _Name = None, channel: _Name = None) -> Response:
        catalogue = await parts.catalogue.get()
        views = () if catalogue is None else release_views(catalogue)
        chosen = [
            view for view in views if product in {None, view.product} and (channel is None or channel in view.channels)
        ]
        return _json(request, {"releases": chosen})

    @router.get("/channels", summary="Channels, rollouts, checkpoints and recalls")
    async def channels(request: Request, product: _Name = None) -> Response:
        catalogue = await parts.catalogue.get()
        views = () if catalogue is None else channel_views(catalogue, now=parts.now)
        return _json(request, {"channels": [view for view in views if product in {None, view.product}]})

    if parts.settings.reports:
        _add_report_routes(router, parts)
    return router


def _add_report_routes(router: APIRouter, parts: Parts) -> None:
    allowance = Allowance(per_minute=parts.settings.reports_per_minute)

    @router.post(
        "/reports",
        summary="Report a check or an update",
        status_code=202,
        openapi_extra=_REPORT_BODY,
        responses={413: {"description": "The report is too large"}, 429: {"description": "Too many reports"}},
    )
    async def take_report(request: Request) -> Response:
        wait = allowance.wait_s(request.client.host if request.client else "", now=parts.clock())
        if wait > 0:
            raise HTTPException(
                429, "Too many reports from this address.", headers={"retry-after": str(math.ceil(wait))}
            )
        report = _parse_report(await _bounded_body(request))
        if await anyio.to_thread.run_sync(lambda: parts.reports.add(report, now=parts.now)):
            parts.metrics.count_report(report.outcome.value)
        return Response(b'{"status":"taken"}', status_code=202, media_type="application/json")

    @router.get("/reports/summary", summary="Reports of the last days, counted")
    async def summary(request: Request) -> Response:
        reports = await parts.reports_now()
        if reports.problem is not None:
            raise HTTPException(503, "Reports cannot be read now.", headers={"retry-after": "30"})
        return _json(request, reports.summary)


def operating_routes(parts: Parts) -> APIRouter:
    """Return the routes for supervisors, load balancers and Prometheus."""
    router = APIRouter(default_response_class=Response)

    @router.get("/health/live", summary="The process answers")
    async def live() -> Response:
        return Response(b'{"status":"alive"}', media_type="application/json", headers={"cache-control": "no-store"})

    @router.get(
        "/health/ready",
        summary="Devices can be served",
        responses={503: {"description": "Devices cannot be served; the body says why"}},
    )
    async def ready() -> Response:
        health, _catalogue = await parts.health()
        return Response(
            msgspec.json.encode(health),
            status_code=503 if health.status is Readiness.UNREADY else 200,
            media_type="application/json",
            headers={"cache-control": "no-store"},
        )

    @router.get("/metrics", summary="Metrics for Prometheus")
    async def metrics() -> Response:
        body = await parts.rendered_metrics()
        return Response(body, headers={"content-type": parts.metrics.content_type, "cache-control": "no-store"})

    return router


async def _bounded_body(request: Request) -> bytes:
    too_large = HTTPException(413, f"A report has at most {MAX_REPORT_BYTES} bytes.")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and (len(declared) > _MAX_DIGITS or int(declared) > MAX_REPORT_BYTES):
        raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_REPORT_BYTES:
            raise too_large
    return bytes(body)


def _parse_report(body: bytes) -> DeviceReport:
    try:
        return DeviceReport.model_validate_json(body)
    except ValidationError as error:
        found: list[dict[str, Any]] = [
            {**problem, "loc": ("body", *problem["loc"])}
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise RequestValidationError(found) from error


def _json(request: Request, value: object) -> Response:
    body = msgspec.json.encode(value)
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"etag": etag, "cache-control": REVALIDATE}
    if etag_matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)
