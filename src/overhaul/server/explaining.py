"""Errors of ours as answers: their sentence where it helps who asked, and the log where only the operator can act."""

import logging

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overhaul.errors import OperatorError, OverhaulError

_LOGGER = logging.getLogger(__name__)


async def explain(_request: Request, error: Exception) -> Response:
    """Answer with the sentence of an error of ours; what concerns only the operator stays in the log."""
    assert isinstance(error, OverhaulError)  # noqa: S101 - registered for this class only
    _LOGGER.error("%s", error)
    detail = str(error)
    if isinstance(error, OperatorError):
        detail = "The server cannot answer because of a fault its operator must mend; its log says which."
    headers = {"cache-control": "no-store"}
    if error.retryable:
        headers["retry-after"] = "30"
    return JSONResponse({"detail": detail, "error": type(error).__name__}, error.http_status, headers=headers)


class Explaining:
    """An ASGI application that answers for another one that failed before it began to answer."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._application(scope, receive, noted)
        except OverhaulError as error:
            if has_begun:
                raise
            await (await explain(Request(scope), error))(scope, receive, send)
