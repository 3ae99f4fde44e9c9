"""Requests that no client sends: every route of the asu interfaces with values from bad to worse, made of one seed.

As a program it sends as many as it is told and counts the answers: `python -m tests.fuzz.asu_requests 100000`.
"""

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from overhaul.builds.records import QueueLimits
from tests.asu_world import BOARD, STABLE, TARGET, World, asu_world, call

_NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1.5, 1e308, "", " ", "\n", "\0", "a\nb", "x" * 5000, "é",
    "😀", "\ud800", "../../etc/passwd", "$(id)", "`id`", "'; DROP TABLE builds; --", "%s%n", "{{7*7}}", "<script>",
    "-x", "+x", [], {}, [[]], [None], [{}], {"": ""}, ["x"] * 3000, {str(number): "1" for number in range(1500)}, "NaN",
    "latest", STABLE, STABLE + "\n", TARGET, "ath79/../x", BOARD, "tplink,archer-c7-v2", "vim", "openwrt", "SNAPSHOT",
    "debian", "https://feeds.test/good", "https://feeds.test/good\nsrc x https://evil", "https://user@feeds.test/",
    "image." + "0" * 15, "0" * 12, "0" * 64,
)  # fmt: skip
_KEYS = (
    "distro", "version", "version_code", "target", "profile", "packages", "packages_versions", "diff_packages",
    "defaults", "rootfs_size_mb", "filesystem", "repositories", "repositories_mode", "repository_keys", "client",
    "board", "model", "installed", "revision", "upgrade_packages", "request_hash", "unheard",
)  # fmt: skip
_POSTS = (
    "/api/v1/build", "/api/build", "/api/upgrade-check", "/api/upgrade-request", "/api/build-request",
    "/firmware/build",)  # fmt: skip
_GETS = (
    "/api/v1/build/{}", "/api/v1/build/{}/log?offset={}", "/api/v1/revision/{}/{}/{}", "/json/v1/{}.json",
    "/json/v1/releases/{}/targets/{}/{}.json", "/json/v1/{}/packages/{}-index.json", "/store/{}/{}", "/json/{}/{}",
    "/download/{}/{}", "/download/faillogs/faillog-{}.txt", "/api/upgrade-request/{}", "/api/image/{}",
    "/api/manifest/{}", "/api/v1/packages_hash/{}", "/api/models?distro={}&version={}&model_search={}",
    "/api/packages_image?distro={}&version={}&target={}&profile={}", "/api/versions?distro={}",
    "/api/v1/top-packages?branch={}&n={}", "/api/v1/builds-by-version?branch={}", "/api/v1/build-errors?n={}",
    "/firmware?q={}&version={}", "/firmware/device/{}/{}/{}/{}", "/firmware/packages?q={}&version={}&target={}",
    "/firmware/build/{}", "/firmware/assets/{}", "/builds", "//{}", "/api/v1/stats/popular_packages", "/api/distros",
)  # fmt: skip
_METHODS = ("GET", "GET", "GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE")


@dataclass(frozen=True)
class Sent:
    """One request."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]


def requests(seed: int) -> Iterator[Sent]:
    """Yield requests for ever, the same for the same seed."""
    chance = random.Random(seed)
    while True:
        yield _post(chance) if chance.random() < 0.6 else _get(chance)


def _post(chance: random.Random) -> Sent:
    document: dict[str, Any] = {}
    if chance.random() < 0.8:
        document = {"distro": "openwrt", "version": STABLE, "target": TARGET, "profile": BOARD, "board": BOARD,
                    "packages": ["vim"]}  # fmt: skip
    for key in chance.sample(_KEYS, chance.randint(0, 5)):
        document[key] = _value(chance)
    body = json.dumps(document).encode()
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        body = _damaged(body, chance)
    kind = chance.choice(("application/json", "text/json", "text/plain", "", "multipart/form-data; boundary=x"))
    agent = chance.choice(("owut/1", "auc (0.3.2)", "auc (" + "x" * 500 + ")", "\x7f", ""))
    return Sent("POST", chance.choice(_POSTS), body, {"content-type": kind, "user-agent": agent})


def _get(chance: random.Random) -> Sent:
    pattern = chance.choice(_GETS)
    parts = [_text(chance) for _ in range(pattern.count("{}"))]
    headers = {"range": _text(chance)[:200], "if-none-match": "*", "hx-request": "true"}
    chosen = {name: value for name, value in headers.items() if chance.random() < 0.2}
    return Sent(chance.choice(_METHODS), pattern.format(*parts), b"" if chance.random() < 0.8 else b"{", chosen)


def _value(chance: random.Random) -> Any:
    value = chance.choice(_NASTY)
    if chance.random() < 0.3:
        value = [value, chance.choice(_NASTY)]
    elif chance.random() < 0.2:
        value = {str(chance.choice(_NASTY))[:200]: value}
    return value


def _text(chance: random.Random) -> str:
    text = str(chance.choice(_NASTY))[:300]
    if chance.random() < 0.5:
        return quote(text.encode(errors="replace"), safe=chance.choice(("", "/")))
    return text.replace("?", "").encode(errors="replace").decode()


def _damaged(body: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(body) + 1)
    match chance.randrange(4):
        case 0:
            return body[:at]
        case 1:
            return body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :]
        case 2:
            return body[:at] + chance.choice((b"[", b'"', b"\\u0000", b"\xff", b"{}", b"," * 9)) + body[at:]
        case _:
            return body * 2


async def send_all(world: World, *, seed: int, amount: int) -> tuple[Counter[int], list[tuple[int, Sent]]]:
    """Send requests; return the statuses, and those requests that were answered with a fault of the server."""
    statuses: Counter[int] = Counter()
    faults = []
    stream = requests(seed)
    for number in range(amount):
        sent = next(stream)
        if number % 50 == 0:
            world.now[0] += 30
        reply = await call(
            world.app, sent.path, method=sent.method, body=sent.body, client=f"c{number % 97}", headers=sent.headers
        )
        statuses[reply.status] += 1
        # 501, 503 and 529 are what the interfaces say of an image without upgrade and of a full queue.
        if reply.status >= 500 and reply.status not in {501, 503, 529}:
            faults.append((reply.status, sent))
        if any("\n" in value or "\r" in value for value in reply.headers.values()):
            faults.append((reply.status, sent))
    return statuses, faults


def main() -> None:
    """Send as many requests as the first argument says and print how they were answered."""
    amount = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    limits = QueueLimits(waiting=1_000_000, waiting_of_client=1_000_000)
    with tempfile.TemporaryDirectory() as directory, fuzzed_world(Path(directory), limits) as world:
        statuses, faults = world.loop.run(send_all(world, seed=1, amount=amount))
    print(dict(sorted(statuses.items())))
    print(f"{len(faults)} faults", *faults[:5], sep="\n")
    sys.exit(1 if faults else 0)


def fuzzed_world(directory: Path, limits: QueueLimits | None = None) -> Any:
    """Return the world that is fuzzed: everything is switched on."""
    return asu_world(directory, limits=limits, allow_defaults=True, repository_allow_list=("https://feeds.test/good",))


if __name__ == "__main__":
    main()
