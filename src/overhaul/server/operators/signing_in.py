"""Signing in and out: by password, or because an identity provider vouches for somebody who was added before.

    GET  /login             the form
    POST /login, /logout    begin a session by password; end one
    GET  /login/oidc        to the identity provider, when there is one
    GET  /login/oidc/back   and back from it

What was wrong with a password is never said, and every attempt stands in the audit log.
"""

from collections.abc import Callable

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from overhaul.errors import InputError, OverhaulError
from overhaul.server.operators import door
from overhaul.server.operators.accounts import Operators
from overhaul.server.operators.audit import AuditLog
from overhaul.server.operators.guessing import Guessing
from overhaul.server.operators.oidc import COOKIE_S, IdentityProvider, Question, RefusedIdentityError
from overhaul.server.operators.sessions import Sessions, form_token
from overhaul.server.settings import OperatorAccess

_LOGIN_COOKIE_S = 3600


class SigningIn:
    """The login page, and what is sent from it."""

    def __init__(
        self,
        access: OperatorAccess,
        *,
        operators: Operators,
        sessions: Sessions,
        guessing: Guessing,
        render: Callable[..., Response],
        clock: Callable[[], float],
    ) -> None:
        self._access = access
        self._operators = operators
        self._sessions = sessions
        self._guessing = guessing
        self._render = render
        self._clock = clock
        self._log = AuditLog(access.audit)
        self._provider = None if access.oidc is None else IdentityProvider(access.oidc, clock=clock)

    def routes(self) -> list[Route]:
        """Return the routes of signing in and out."""
        routes = [
            Route("/login", self.page, methods=["GET"]),
            Route("/login", self.sign_in, methods=["POST"]),
            Route("/logout", self.sign_out, methods=["POST"]),
        ]
        if self._provider is not None:
            routes += [
                Route("/login/oidc", self.ask_provider, methods=["GET"]),
                Route("/login/oidc/back", self.come_back, methods=["GET"]),
            ]
        return routes

    async def page(self, request: Request) -> Response:
        """Show the form."""
        return self._form(request, going_to=door.safe_next(request.query_params.get("next", "")))

    async def sign_in(self, request: Request) -> Response:
        """Take the form: begin a session, or say no without saying why."""
        try:
            fields = await door.read_form(request, cookie=door.LOGIN_COOKIE)
        except InputError as error:
            return self._form(request, going_to="/fleet", problem=str(error), status=403)
        name, password = fields.get("name", "").strip().lower(), fields.get("password", "")
        going_to = door.safe_next(fields.get("next", ""))
        try:
            token, wait_s = await anyio.to_thread.run_sync(
                lambda: self._try(name, password, address=door.address_of(request))
            )
        except OverhaulError as error:
            return self._form(request, going_to=going_to, problem=str(error), status=error.http_status)
        if wait_s:
            minutes = -(-wait_s // 60)
            words = f"Too many attempts. Try again in {minutes} minute{'' if minutes == 1 else 's'}."
            answer = self._form(request, going_to=going_to, problem=words, status=429, name=name)
            answer.headers["retry-after"] = str(wait_s)
            return answer
        if not token:
            words = "Name or password is wrong."
            return self._form(request, going_to=going_to, problem=words, status=401, name=name)
        answer = RedirectResponse(going_to, status_code=303, headers={"cache-control": "no-store"})
        door.set_cookie(answer, door.SESSION_COOKIE, token, max_age_s=self._access.longest_s)
        door.drop_cookie(answer, door.LOGIN_COOKIE)
        return answer

    async def ask_provider(self, request: Request) -> Response:
        """Send the browser to the identity provider."""
        assert self._provider is not None  # noqa: S101 - the route exists with a provider only
        provider, question = self._provider, Question(cookie=door.new_login_cookie())
        try:
            address = await anyio.to_thread.run_sync(provider.address, question)
        except OverhaulError as error:
            return self._form(request, going_to="/fleet", problem=str(error), status=error.http_status)
        answer = RedirectResponse(address, status_code=303, headers={"cache-control": "no-store"})
        door.set_cookie(answer, door.OIDC_COOKIE, question.cookie, max_age_s=COOKIE_S)
        return answer

    async def come_back(self, request: Request) -> Response:
        """Take what the provider's page led back with: begin a session, or say what was wrong."""
        asked, question = request.query_params, Question(cookie=request.cookies.get(door.OIDC_COOKIE, ""))
        address = door.address_of(request)
        try:
            if asked.get("error"):
                raise RefusedIdentityError(f"it says {asked['error'][:60]!r}")
            token = await anyio.to_thread.run_sync(
                lambda: self._vouched(
                    question,
                    code=asked.get("code", "")[:4096],
                    state=asked.get("state", "")[:200],
                    issuer=asked.get("iss", "")[:400],
                    address=address,
                )
            )
        except OverhaulError as error:
            answer = self._form(request, going_to="/fleet", problem=str(error), status=error.http_status)
            door.drop_cookie(answer, door.OIDC_COOKIE)
            return answer
        # A redirect would still count as the provider's, and the browser would keep the strict cookie to itself.
        answer = self._render("signed_in.html")
        door.set_cookie(answer, door.SESSION_COOKIE, token, max_age_s=self._access.longest_s)
        door.drop_cookie(answer, door.OIDC_COOKIE)
        return answer

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        token = request.cookies.get(door.SESSION_COOKIE, "")
        try:
            await door.read_form(request, cookie=door.SESSION_COOKIE)
        except InputError as error:
            return self._render("problem.html", status=403, problem=str(error))
        address = door.address_of(request)
        await anyio.to_thread.run_sync(lambda: self._end(token, address))
        answer = RedirectResponse("/login", status_code=303, headers={"clear-site-data": '"cache"'})
        door.drop_cookie(answer, door.SESSION_COOKIE)
        return answer

    def _form(
        self, request: Request, *, going_to: str, problem: str = "", status: int = 200, name: str = ""
    ) -> Response:
        cookie = request.cookies.get(door.LOGIN_COOKIE) or door.new_login_cookie()
        answer = self._render(
            "login.html",
            status=status,
            problem=problem,
            going_to=going_to,
            name=name,
            token=form_token(cookie),
            provider=None if self._access.oidc is None else self._access.oidc.label,
        )
        door.set_cookie(answer, door.LOGIN_COOKIE, cookie, max_age_s=_LOGIN_COOKIE_S)
        return answer

    def _try(self, name: str, password: str, *, address: str) -> tuple[str, int]:
        """Return a session's cookie and 0; or nothing, and the seconds to wait when the limit is reached."""
        now = int(self._clock())
        attempt, wait_s = self._guessing.attempt(account=name, address=address, now=now)
        if not attempt:
            return "", wait_s
        operator = self._operators.check(name, password)
        result = "name or password is wrong" if operator is None else "done"
        self._log.append(at=now, operator=name, address=address, act="login", result=result)
        if operator is None:
            return "", 0
        self._guessing.succeeded(account=name)
        return self._sessions.begin(operator.name, now=now), 0

    def _vouched(self, question: Question, *, code: str, state: str, issuer: str, address: str) -> str:
        """Return the cookie of a session for whom the provider vouches for."""
        assert self._provider is not None  # noqa: S101 - the route exists with a provider only
        now, name = int(self._clock()), ""
        try:
            if not question.cookie:
                raise RefusedIdentityError("it does not belong to a question of this browser")
            name = self._provider.name_of(question, code=code, state=state, issuer=issuer)
            operator = self._operators.get(name)
        except OverhaulError as error:
            self._log.append(at=now, operator=name, address=address, act="login by provider", result=str(error))
            raise
        self._log.append(at=now, operator=operator.name, address=address, act="login by provider")
        return self._sessions.begin(operator.name, now=now)

    def _end(self, token: str, address: str) -> None:
        now = int(self._clock())
        session = self._sessions.find(token, now=now)
        self._sessions.end(token)
        if session is not None:
            self._log.append(at=now, operator=session.operator, address=address, act="logout")
