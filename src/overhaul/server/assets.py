"""The stylesheet, script and icon of the pages: few, packaged, named by digest so that browsers keep them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from overhaul.server.caching import IMMUTABLE

_DIRECTORY = Path(__file__).parent / "static"
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True, kw_only=True)
class _Asset:
    body: bytes
    media_type: str


class Assets:
    """Every asset, in memory."""

    def __init__(self) -> None:
        self._assets: dict[str, _Asset] = {}
        self._names: dict[str, str] = {}
        for path in sorted(_DIRECTORY.iterdir()):
            if path.suffix in _MEDIA_TYPES:
                body = path.read_bytes()
                name = f"{path.stem}.{hashlib.sha256(body).hexdigest()[:16]}{path.suffix}"
                self._names[path.name] = name
                self._assets[name] = _Asset(body=body, media_type=_MEDIA_TYPES[path.suffix])

    def url(self, name: str) -> str:
        """Return where pages find the asset `name`."""
        return f"/assets/{self._names[name]}"

    async def answer(self, request: Request) -> Response:
        """Answer a request for `/assets/{name}`."""
        asset = self._assets.get(request.path_params["name"])
        if asset is None:
            return Response("Not Found", status_code=404, media_type="text/plain")
        headers = {"cache-control": IMMUTABLE, "x-content-type-options": "nosniff"}
        return Response(asset.body, media_type=asset.media_type, headers=headers)
