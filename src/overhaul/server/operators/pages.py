"""The dashboard: what the fleet does, and what an operator changes about it; server-made pages without a script.

    GET  /fleet                 plots, channels, failures; ?period= &product= &channel= &route= narrow it down
    GET  /fleet/release         one release in one channel, and the acts that can be done to it
    POST /fleet/review          what an act will change; nothing is done yet
    POST /fleet/act             do it; refused when the policy moved since it was looked at
    GET  /fleet/audit           who did what

Signing in stands in `signing_in.py`.
Without operators the dashboard is as open as the status page, and changes nothing. With them it asks everybody to sign
in, and what changes something goes to the desk (`desk.py`), which alone holds a key.
"""

import functools
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from urllib.parse import quote, urlencode

import anyio.to_thread
import jinja2
import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

import overhaul
from overhaul.errors import InputError, OverhaulError
from overhaul.host import exchange
from overhaul.policy.document import Policy
from overhaul.server.assets import Assets
from overhaul.server.catalogue import Catalogue
from overhaul.server.fleet import DEFAULT_PERIOD, PERIODS, Choice
from overhaul.server.operators import door
from overhaul.server.operators.accounts import Operators, Role
from overhaul.server.operators.acts import Act, ActKind, UnusableActError, parse_steps, preview
from overhaul.server.operators.audit import AuditLog
from overhaul.server.operators.desk import Order, hand_in
from overhaul.server.operators.guessing import Guessing
from overhaul.server.operators.looking import Looking
from overhaul.server.operators.sessions import Session, Sessions
from overhaul.server.operators.signing_in import SigningIn
from overhaul.server.pages import STATE_WORDS, by_stability
from overhaul.server.parts import Parts
from overhaul.server.settings import OperatorAccess
from overhaul.server.statistics import Group, below
from overhaul.server.views import ChannelView, EntryView, channel_views
from overhaul.server.wording import FILTERS

_AUDIT_SHOWN = 200
_CAREFUL_PERCENT = 5.0
_ROUTES = ("content", "castr", "atomupd", "swupd", "ostree", "asu-file", "poll")
_Handler = Callable[[Request, Session | None], Awaitable[Response]]


class FleetPages:
    """Renders the dashboard of one application and takes its forms."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._access = parts.settings.operators
        self._looking = Looking(parts)
        self._assets = Assets()
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent.parent / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(FILTERS)
        self._templates.globals.update(
            asset=self._assets.url,
            overhaul_version=overhaul.__version__,
            title=parts.settings.title,
            signs_in=self._access is not None,
            state_words=STATE_WORDS,
            FORM_TOKEN=door.FORM_TOKEN,
        )

    def routes(self) -> list[Route]:
        """Return the routes of the dashboard."""
        shown = [Route("/fleet", self._for_session(self._fleet), methods=["GET"])]
        if self._access is None:
            return shown
        signing_in = SigningIn(
            self._access,
            operators=Operators(self._parts.database, clock=self._parts.clock),
            sessions=self.sessions(self._access),
            guessing=Guessing(self._parts.database),
            render=self.render,
            clock=self._parts.clock,
        )
        return [
            *shown,
            Route("/fleet/release", self._for_session(self._release), methods=["GET"]),
            Route("/fleet/review", self._for_session(self._review), methods=["POST"]),
            Route("/fleet/act", self._for_session(self._act), methods=["POST"]),
            Route("/fleet/audit", self._for_session(self._audit), methods=["GET"]),
            *signing_in.routes(),
        ]

    def sessions(self, access: OperatorAccess) -> Sessions:
        """Return who is signed in."""
        return Sessions(self._parts.database, idle_s=access.idle_s, longest_s=access.longest_s)

    def render(self, template: str, *, status: int = 200, session: Session | None = None, **facts: object) -> Response:
        """Return a page."""
        body = self._templates.get_template(template).render(session=session, now=self._parts.now, **facts)
        return Response(body, status_code=status, media_type="text/html", headers=door.SECURITY_HEADERS)

    def _for_session(self, handler: _Handler) -> Callable[[Request], Awaitable[Response]]:
        """Return `handler` for those who are signed in; others are sent to the login, and errors become pages."""

        @functools.wraps(handler)
        async def handled(request: Request) -> Response:
            session = None
            if self._access is not None:
                token = request.cookies.get(door.SESSION_COOKIE, "")
                sessions = self.sessions(self._access)
                session = await anyio.to_thread.run_sync(lambda: sessions.find(token, now=self._parts.now))
                if session is None:
                    there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                    back = there if request.method == "GET" else "/fleet"
                    return RedirectResponse(f"/login?next={quote(back, safe='')}", status_code=303)
            try:
                return await handler(request, session)
            except OverhaulError as error:
                return self.render("problem.html", status=error.http_status, session=session, problem=str(error))

        return handled

    async def _fleet(self, request: Request, session: Session | None) -> Response:
        parts = self._parts
        _health, catalogue = await parts.health()
        channels = () if catalogue is None else channel_views(catalogue, now=parts.now)
        products = sorted({channel.product for channel in channels})
        names = sorted({channel.channel for channel in channels})
        choice = _choice(request.query_params, products=products, channels=names)
        fleet = await self._looking.fleet(choice, channels)
        chosen = [
            channel
            for channel in channels
            if choice.product in {"", channel.product} and choice.channel in {"", channel.channel}
        ]
        return self.render(
            "fleet.html",
            session=session,
            choice=choice,
            periods=PERIODS,
            products=products,
            channel_names=names,
            route_names=_ROUTES,
            channels=sorted(chosen, key=by_stability),
            fleet=fleet,
            link=_release_link,
        )

    async def _release(self, request: Request, session: Session | None) -> Response:
        assert session is not None and self._access is not None  # noqa: S101, PT018 - the route exists with operators only
        catalogue = await self._parts.catalogue.get()
        channel, entry = _entry(catalogue, request.query_params, now=self._parts.now)
        targets = _more_stable(self._access.channels.get(channel.product, ()), channel.channel)
        revisions = _revisions(catalogue, channel.product)
        desk = self._access.desk
        history = await anyio.to_thread.run_sync(
            lambda: [
                record
                for record in AuditLog(self._access.audit if self._access else Path()).recent(limit=_AUDIT_SHOWN)
                if record.subject.startswith(_release_text(channel, entry) + " ")
            ]
        )
        return self.render(
            "release.html",
            session=session,
            channel=channel,
            entry=entry,
            release_text=_release_text(channel, entry),
            targets=[(name, revisions.get(name, 0)) for name in targets],
            may_act=session.role is Role.OPERATOR,
            desk_answers=await anyio.to_thread.run_sync(exchange.answers, desk),
            desk=desk,
            history=history[:12],
            suggested=entry.percent or await anyio.to_thread.run_sync(lambda: self._before_pause(channel, entry)),
            said=request.query_params.get("said", ""),
        )

    def _before_pause(self, channel: ChannelView, entry: EntryView) -> float:
        """Return what a release was open to before it was paused; a careful beginning when that is not known."""
        place = (channel.product, channel.channel, entry.variant, entry.arch, entry.version, entry.build_id)
        changes = self._parts.exposure.read(since=0, product=channel.product, channel=channel.channel).get(place, ())
        return next((change.percent for change in reversed(changes) if change.percent > 0), _CAREFUL_PERCENT)

    async def _review(self, request: Request, session: Session | None) -> Response:
        assert session is not None and self._access is not None  # noqa: S101, PT018 - the route exists with operators only
        fields = await door.read_form(request, cookie=door.SESSION_COOKIE)
        act = _act(fields)
        catalogue = await self._parts.catalogue.get()
        shown = preview(
            act, _policies(catalogue, act.product), now=self._parts.now, repository=str(self._access.directory)
        )
        group = Group(product=act.product, channel=act.channel, variant=act.variant, arch=act.arch)
        population = await anyio.to_thread.run_sync(
            lambda: self._parts.statistics.population(product=act.product, channel=act.channel)
        )
        known = population.get(group, {})
        behind = below(known, version=act.version, build_id=act.build_id)
        return self.render(
            "review.html",
            session=session,
            preview=shown,
            act=act,
            fields=_act_fields(act),
            known=sum(known.values()),
            behind=behind,
            exposed=round(behind * shown.added_percent / 100),
            running_it=known.get((act.version, act.build_id), 0),
            may_act=session.role is Role.OPERATOR,
            desk_answers=await anyio.to_thread.run_sync(exchange.answers, self._access.desk),
            moved=shown.revision != act.revision,
            back=_act_link(act),
        )

    async def _act(self, request: Request, session: Session | None) -> Response:
        assert session is not None and self._access is not None  # noqa: S101, PT018 - the route exists with operators only
        fields = await door.read_form(request, cookie=door.SESSION_COOKIE)
        act = _act(fields)
        if act.kind is ActKind.RECALL and fields.get("sure") != "yes":
            raise UnusableActError("A recall cannot be taken back; tick the box that says so and confirm again.")
        order = Order(act=act, session=request.cookies[door.SESSION_COOKIE], address=door.address_of(request))
        desk = self._access.desk
        done = await anyio.to_thread.run_sync(lambda: hand_in(desk, order))
        self._looking.forget()
        if not done.done:
            return self.render(
                "problem.html", status=done.status, session=session, problem=done.problem, back=_act_link(act)
            )
        said = "done" if done.changed else "unchanged"
        return RedirectResponse(f"{_act_link(act)}&said={said}", status_code=303)

    async def _audit(self, _request: Request, session: Session | None) -> Response:
        assert self._access is not None  # noqa: S101 - the route exists with operators only
        log = AuditLog(self._access.audit)
        records = await anyio.to_thread.run_sync(lambda: log.recent(limit=_AUDIT_SHOWN))
        problem, lines = "", 0
        try:
            lines, _digest = await anyio.to_thread.run_sync(log.verify)
        except OverhaulError as error:
            problem = str(error)
        return self.render(
            "audit.html", session=session, records=records, lines=lines, problem=problem, shown=_AUDIT_SHOWN
        )


def _choice(asked: Mapping[str, str], *, products: Collection[str], channels: Collection[str]) -> Choice:
    """Return what the filters choose; those that name nothing known choose all."""

    def known(name: str, among: Collection[str]) -> str:
        given = asked.get(name, "")
        return given if given in among else ""

    return Choice(
        period=known("period", PERIODS) or DEFAULT_PERIOD,
        product=known("product", products),
        channel=known("channel", channels),
        route=known("route", _ROUTES),
    )


def _entry(catalogue: Catalogue | None, asked: Mapping[str, str], *, now: int) -> tuple[ChannelView, EntryView]:
    wanted = tuple(asked.get(name, "") for name in ("variant", "arch", "version", "build_id"))
    for channel in () if catalogue is None else channel_views(catalogue, now=now):
        if (channel.product, channel.channel) == (asked.get("product"), asked.get("channel")):
            for entry in channel.entries:
                if (entry.variant, entry.arch, entry.version, entry.build_id) == wanted:
                    return channel, entry
    raise _NoSuchReleaseError("This channel does not hold this release; the dashboard shows what it holds.")


class _NoSuchReleaseError(InputError):
    """A link to a release that a channel does not hold."""

    http_status = 404


def _policies(catalogue: Catalogue | None, product: str) -> dict[str, Policy]:
    policies = () if catalogue is None else catalogue.policies
    return {policy.channel: policy for policy in policies if policy.product == product}


def _revisions(catalogue: Catalogue | None, product: str) -> dict[str, int]:
    return {channel: policy.revision for channel, policy in _policies(catalogue, product).items()}


def _more_stable(channels: tuple[str, ...], channel: str) -> tuple[str, ...]:
    return tuple(reversed(channels[: channels.index(channel)])) if channel in channels else ()


def _act(fields: Mapping[str, str]) -> Act:
    """Return the act of a form.

    Raises:
        UnusableActError: It says too little or too much.
    """
    given: dict[str, object] = {
        name: value for name, value in fields.items() if name in Act.__struct_fields__ and value
    }
    given["allow_lower"] = fields.get("allow_lower") == "yes"
    given["steps"] = parse_steps(fields.get("steps", ""))
    if fields.get("percent", "").strip() in {"", "all"}:
        given.pop("percent", None)
    given["reason"] = " ".join(fields.get("reason", "").split())
    try:
        act = msgspec.convert(given, Act, strict=False)
    except msgspec.ValidationError as error:
        raise UnusableActError(f"This form cannot be used: {error}.") from error
    if act.kind is ActKind.RECALL and not act.reason:
        raise UnusableActError("A recall needs a reason; people and devices are shown it.")
    if act.kind is ActKind.PROMOTE and act.source is None:
        raise UnusableActError("A release is promoted from a channel that holds it.")
    return act


def _act_fields(act: Act) -> dict[str, str]:
    """Return the hidden fields that make the same act again."""
    fields = {
        "kind": act.kind.value,
        "product": act.product,
        "variant": act.variant,
        "arch": act.arch,
        "version": act.version,
        "build_id": act.build_id,
        "channel": act.channel,
        "source": act.source or "",
        "percent": "" if act.percent is None else repr(act.percent),
        "steps": "\n".join(f"{_step_time(step.since)} {step.percent!r}" for step in act.steps),
        "reason": act.reason,
        "allow_lower": "yes" if act.allow_lower else "",
        "revision": str(act.revision),
    }
    return {name: value for name, value in fields.items() if value}


def _step_time(seconds: int) -> str:
    """Return a time as a step in a form writes it."""
    return FILTERS["machine_time"](seconds)


def _release_text(channel: ChannelView, entry: EntryView) -> str:
    return "/".join((channel.product, entry.variant, entry.arch, entry.version, entry.build_id))


def _release_link(channel: ChannelView, entry: EntryView) -> str:
    return _link(channel.product, channel.channel, entry)


def _act_link(act: Act) -> str:
    return _link(act.product, act.channel, act)


def _link(product: str, channel: str, release: Act | EntryView) -> str:
    named = {
        "product": product,
        "channel": channel,
        "variant": release.variant,
        "arch": release.arch,
        "version": release.version,
        "build_id": release.build_id,
    }
    return f"/fleet/release?{urlencode(named)}"
