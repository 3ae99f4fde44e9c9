"""What the signer finds out by itself about builders."""

import threading
import time
from collections.abc import Callable, Mapping

from overhaul.builds.imagebuilders import ImageBuilders
from overhaul.builds.recipe import Recipe

#: A snapshot may be replaced upstream while a build with the last one still runs.
_REMEMBER_S = 86_400.0
_ASK_AGAIN_S = 60.0


class ImageBuilderExpectation:
    """The digests of ImageBuilders that upstream signs, and those it signed within the last day."""

    def __init__(self, imagebuilders: ImageBuilders, *, clock: Callable[[], float] = time.time) -> None:
        self._imagebuilders = imagebuilders
        self._clock = clock
        #: (version, target) -> digest -> when it was last seen signed.
        self._seen: dict[tuple[str, str], dict[str, float]] = {}
        self._lock = threading.Lock()

    def builder_digests(self, recipe: Recipe) -> frozenset[str]:
        """Return the digests an ImageBuilder for `recipe` can have had."""
        with self._lock:
            now = self._clock()
            seen = self._seen.setdefault((recipe.version, recipe.target), {})
            if not seen or now - max(seen.values()) > _ASK_AGAIN_S:
                seen[self._imagebuilders.digest(recipe.version, recipe.target)] = now
            for digest in [digest for digest, at in seen.items() if now - at > _REMEMBER_S]:
                del seen[digest]
            return frozenset(seen)

    def manifest(self, recipe: Recipe) -> Mapping[str, str] | None:  # noqa: ARG002 - the ImageBuilder resolves it
        """Return None: which packages come along is decided inside the ImageBuilder."""
        return None
