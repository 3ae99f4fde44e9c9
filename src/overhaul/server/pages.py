"""The status page: what is published, how far it is rolled out, how devices fare, when signatures end.

The page works without a script; with it, a fragment is asked for every few seconds and only the sections that
changed are replaced. No style or script stands in the page itself and nothing is loaded from elsewhere, so the
content policy forbids everything else.
"""

import hashlib
from pathlib import Path

import jinja2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import overhaul
from overhaul.release.channels import Channels
from overhaul.server.assets import Assets
from overhaul.server.caching import REVALIDATE, etag_matches
from overhaul.server.parts import SUMMARY_DAYS, Parts
from overhaul.server.reports import Outcome
from overhaul.server.views import ChannelView, EntryState, channel_views, release_views
from overhaul.server.wording import FILTERS

_SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
STATE_WORDS = {
    EntryState.OPEN: "open to all",
    EntryState.ROLLING_OUT: "rolling out",
    EntryState.PAUSED: "held at 0 %",
    EntryState.RECALLED: "recalled",
}
#: Releases shown; the JSON interface lists all.
_RELEASES_SHOWN = 50
_ENTRIES_SHOWN = 12


class Pages:
    """Renders the pages of one application."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._assets = Assets()
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(FILTERS)
        self._templates.globals.update(asset=self._assets.url, overhaul_version=overhaul.__version__)

    def routes(self) -> list[Route]:
        """Return the routes of the pages."""
        return [
            Route("/", self._page, methods=["GET"]),
            Route("/fragments/status", self._fragment, methods=["GET"]),
            Route("/assets/{name}", self._assets.answer, methods=["GET"]),
        ]

    async def _page(self, request: Request) -> Response:
        return await self._answer(request, "page.html")

    async def _fragment(self, request: Request) -> Response:
        return await self._answer(request, "status.html")

    async def _answer(self, request: Request, template: str) -> Response:
        body = self._templates.get_template(template).render(await self._facts(request)).encode()
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {**_SECURITY_HEADERS, "etag": etag, "cache-control": REVALIDATE}
        if etag_matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="text/html", headers=headers)

    async def _facts(self, request: Request) -> dict[str, object]:
        health, catalogue = await self._parts.health()
        settings = self._parts.settings
        reports = await self._parts.reports_now() if settings.reports else None
        channels = () if catalogue is None else channel_views(catalogue, now=self._parts.now)
        releases = () if catalogue is None else release_views(catalogue)
        newest = sorted(releases, key=lambda release: release.published_at, reverse=True)
        return {
            "title": settings.title,
            "base_url": str(request.base_url),
            "builds_images": settings.images_on_demand is not None,
            "now": self._parts.now,
            "health": health,
            "roles": () if catalogue is None else sorted(catalogue.roles, key=lambda role: role.expires_at),
            "warn_before_s": settings.warn_before_expiry_s,
            "channels": sorted(channels, key=by_stability),
            "products": sorted({release.product for release in releases}),
            "releases": newest[:_RELEASES_SHOWN],
            "releases_total": len(releases),
            "entries_shown": _ENTRIES_SHOWN,
            "state_words": STATE_WORDS,
            "outcomes": list(Outcome),
            "reports": reports,
            "summary_days": SUMMARY_DAYS,
            "published_at": None if catalogue is None else catalogue.published_at,
        }


def by_stability(view: ChannelView) -> tuple[str, int, str]:
    """Return what sorts the usual channels in their usual order, then the others by name."""
    usual = Channels().names
    place = usual.index(view.channel) if view.channel in usual else len(usual)
    return view.product, place, view.channel
