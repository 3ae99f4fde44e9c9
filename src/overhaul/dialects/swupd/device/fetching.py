"""Fetching from a repository: https and file addresses, bounded, resumed, several at once.

Nothing is unbounded: small documents have a fixed limit, and the limit of everything else comes from signed
manifests. A file comes into `download/` under the name of its address and goes on from there after an interruption;
it is given to its reader only when it came whole.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import local
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from overhaul.dialects.swupd.device.errors import DownloadError, InsecureRepositoryError, NoAnswerError, NoSpaceError
from overhaul.errors import NetworkError
from overhaul.transfer.fetcher import Fetcher, OversizeError, Request, Response, UnreachableError
from overhaul.transfer.settings import FetchSettings

_PIECE = 256 * 1024
#: What no request for a small document may exceed: version files, signatures, formats.
SMALL_BYTES = 1 << 20
#: Left free when the length of what comes is told beforehand.
_RESERVE_BYTES = 1 << 20

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class DownloadSettings:
    """What the command line says about fetching."""

    allow_http: bool = False
    max_parallel: int = 15
    max_retries: int = 3
    retry_delay_s: float = 10.0
    user_agent: str = "swupd-client/overhaul"
    #: Base URLs with the same content, best first.
    mirrors: tuple[str, ...] = ()


def check_url(url: str, *, allow_http: bool) -> str:
    """Return `url` without a slash at its end when it may be used.

    Raises:
        InsecureRepositoryError: It is neither https nor file, nor http that is allowed.
    """
    scheme = url.partition(":")[0].lower()
    if scheme in {"https", "file"} or (scheme == "http" and allow_http):
        return url.rstrip("/")
    raise InsecureRepositoryError(url=url)


class Downloader:
    """Fetches for one run; safe to use from several threads."""

    def __init__(self, settings: DownloadSettings, *, wait_s: Callable[[float], None] = time.sleep) -> None:
        self._settings = settings
        self._wait_s = wait_s
        self._local = local()

    def pause(self, seconds: float) -> None:
        """Wait, as between two tries."""
        self._wait_s(seconds)

    def small(self, url: str, *, limit_bytes: int = SMALL_BYTES) -> bytes | None:
        """Return a small document, or None when the repository has none there.

        Raises:
            NoAnswerError: The repository cannot be reached, or answers with an error.
        """
        try:
            with self._fetcher().fetch(Request(url=url)) as response:
                if response.status in {403, 404, 410}:
                    return None
                if response.status != 200:
                    raise NoAnswerError(url=url, reason=f"status {response.status}")
                return b"".join(_bounded(response, limit_bytes))
        except OversizeError as error:
            raise DownloadError(what=url, reason=f"more than {limit_bytes} bytes came") from error
        except NetworkError as error:
            if isinstance(error, NoAnswerError):
                raise
            raise NoAnswerError(url=url, reason=str(error)) from error

    def file(
        self,
        url: str,
        path: Path,
        *,
        limit_bytes: int,
        advance: Callable[[int], None] | None = None,
    ) -> bool:
        """Fetch a file to `path`; return whether the repository has it.

        What an earlier run left of it is gone on from.

        Raises:
            DownloadError: It did not come whole, or is larger than `limit_bytes`.
            NoSpaceError: The server announces more than the file system has.
        """
        part = path.with_name(f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.part")
        try:
            return self._file(url, path, part, limit_bytes, advance)
        except OversizeError as error:
            part.unlink(missing_ok=True)
            raise DownloadError(what=url, reason=f"more than the {limit_bytes} bytes that it may have came") from error
        except NetworkError as error:
            raise DownloadError(what=url, reason=str(error)) from error

    def _file(self, url: str, path: Path, part: Path, limit_bytes: int, advance: Callable[[int], None] | None) -> bool:
        have = _size(part)
        if not 0 < have <= limit_bytes:
            have = 0
        with self._fetcher().fetch(Request(url=url, start=have)) as response:
            if response.status in {403, 404, 410}:
                return False
            if have and response.status == 206 and _range_start(response) == have:
                mode = "ab"
            elif have and response.status in {206, 416}:
                # The rest of another file, or of nothing: begin again.
                part.unlink()
                return self._file(url, path, part, limit_bytes, advance)
            elif response.status == 200:
                have, mode = 0, "wb"
            else:
                raise DownloadError(what=url, reason=f"the server answered with status {response.status}")
            _check_space(part.parent, response)
            with part.open(mode) as stream:
                for piece in _bounded(response, limit_bytes - have):
                    stream.write(piece)
                    if advance is not None:
                        advance(len(piece))
        part.replace(path)
        return True

    def each(self, items: Iterable[_Item], work: Callable[[_Item], _Result]) -> Iterator[tuple[_Item, _Result]]:
        """Do `work` for each of `items` in several threads; yield what is done as it is done.

        The first error ends it: what runs is waited for, what waits is dropped.
        """
        from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

        with ThreadPoolExecutor(max(1, self._settings.max_parallel)) as pool:
            source = iter(items)
            running: dict[Future[_Result], _Item] = {}
            try:
                while True:
                    # Never more waiting than a few for each thread, whatever the number of items.
                    while len(running) < 3 * self._settings.max_parallel:
                        try:
                            item = next(source)
                        except StopIteration:
                            break
                        running[pool.submit(work, item)] = item
                    if not running:
                        return
                    done, _waiting = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        item = running.pop(future)
                        yield item, future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _fetcher(self) -> Fetcher:
        # A fetcher belongs to one thread at a time.
        fetcher: Fetcher | None = getattr(self._local, "fetcher", None)
        if fetcher is None:
            fetcher = self._local.fetcher = _AddressFetcher(self._settings, self._wait_s)
        return fetcher


class _AddressFetcher:
    """Answers for `file://` itself and hands all else to an HTTP engine, which is imported only then."""

    def __init__(self, settings: DownloadSettings, wait_s: Callable[[float], None]) -> None:
        self._settings = settings
        self._wait_s = wait_s
        self._http: Fetcher | None = None

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Send `request` and return its response as a context."""
        if request.url.startswith("file://"):
            with _fetch_local(request) as response:
                yield response
            return
        if self._http is None:
            self._http = self._open_http()
        with self._http.fetch(request) as response:
            yield response

    def _open_http(self) -> Fetcher:
        from overhaul.transfer.opening import open_fetcher
        from overhaul.transfer.resuming import ResumingFetcher

        settings = self._settings
        engine = open_fetcher(
            FetchSettings(
                allow_http=settings.allow_http,
                user_agent=settings.user_agent,
                mirrors=settings.mirrors,
                connect_timeout_s=30.0,
                min_bytes_per_s=1,
                min_speed_window_s=120.0,
            )
        )
        return ResumingFetcher(
            engine,
            wait=self._wait_s,
            attempts=settings.max_retries + 1,
            first_wait_s=settings.retry_delay_s,
            longest_wait_s=60.0,
        )


@contextmanager
def _fetch_local(request: Request) -> Iterator[Response]:
    parts = urlsplit(request.url)
    if parts.netloc not in {"", "localhost"}:
        raise UnreachableError(url=request.url, reason="file addresses have no host")
    try:
        stream = Path(unquote(parts.path)).open("rb")  # noqa: SIM115 - closed below, whoever reads it
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        yield Response(url=request.url, status=404, headers={}, body=iter(()))
        return
    except OSError as error:
        raise UnreachableError(url=request.url, reason=str(error.strerror)) from error
    with stream:
        size = os.fstat(stream.fileno()).st_size
        if request.start > size:
            yield Response(url=request.url, status=416, headers={}, body=iter(()))
            return
        stream.seek(request.start)
        headers = {"content-length": str(size - request.start)}
        if request.start:
            headers["content-range"] = f"bytes {request.start}-{size - 1}/{size}"
        body = iter(lambda: stream.read(_PIECE), b"")
        yield Response(url=request.url, status=206 if request.start else 200, headers=headers, body=body)


def _bounded(response: Response, limit_bytes: int) -> Iterator[bytes]:
    announced = _announced(response)
    if announced is not None and announced > limit_bytes:
        raise OversizeError(url=response.url, limit_bytes=limit_bytes)
    received = 0
    for piece in response.body:
        received += len(piece)
        if received > limit_bytes:
            raise OversizeError(url=response.url, limit_bytes=limit_bytes)
        yield piece


def _announced(response: Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def _range_start(response: Response) -> int | None:
    from overhaul.transfer.ranges import content_range_start

    return content_range_start(response)


def _check_space(directory: Path, response: Response) -> None:
    needed = _announced(response)
    if needed is None:
        return
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if needed + _RESERVE_BYTES > free:
        raise NoSpaceError(place=directory, needed_bytes=needed + _RESERVE_BYTES, free_bytes=free)


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0
