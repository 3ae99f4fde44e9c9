"""The one place that turns settings into a fetcher.

The fetcher returned is an engine with the wrappers the settings ask for (published files only, bandwidth cap,
mirrors). Resuming and counting are the business of whoever runs a whole piece of work, because only they know its
budget.

A fetcher belongs to one thread at a time.
"""

import time

from overhaul.transfer.fetcher import Fetcher
from overhaul.transfer.limited import LimitedFetcher
from overhaul.transfer.mirrors import MirrorFetcher
from overhaul.transfer.publishedonly import PublishedOnlyFetcher
from overhaul.transfer.settings import Engine, FetchSettings


def open_fetcher(settings: FetchSettings) -> Fetcher:
    """Return a fetcher that keeps to `settings`."""
    fetcher = _open_engine(settings)
    if settings.published_only:
        fetcher = PublishedOnlyFetcher(fetcher)
    if settings.max_bytes_per_s is not None:
        fetcher = LimitedFetcher(
            fetcher, max_bytes_per_s=settings.max_bytes_per_s, clock=time.monotonic, wait=time.sleep
        )
    if len(settings.mirrors) > 1:
        fetcher = MirrorFetcher(fetcher, base_urls=settings.mirrors)
    return fetcher


def _open_engine(settings: FetchSettings) -> Fetcher:
    if settings.engine is not Engine.PLAIN:
        try:
            from overhaul.transfer.curl import CurlFetcher

            return CurlFetcher(settings)
        except ImportError:
            if settings.engine is Engine.CURL:
                raise
    from overhaul.transfer.plain import PlainFetcher

    return PlainFetcher(settings)
