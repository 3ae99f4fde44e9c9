"""The summary that was read last: a server that still has it says so, and need not send it again.

It is remembered only after everything it led to was verified or is refused anyway, together with what verified it.
With other keys or other demands the summary is asked for, and judged, anew; and once a day in any case, because a
server can be wrong about what it still has: two files of one size and time have one name with many of them.
"""

import hashlib

import msgspec

from overhaul.dialects.ostree.device.remote import Remote

#: How long a server is believed that it still has the summary.
_BELIEVED_S = 86_400


class SeenSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A summary as the server named it, and what it said of a branch."""

    url: str
    branch: str
    #: The server's name of these bytes.
    etag: str
    #: What the branch named, 64 hexadecimal digits.
    commit: str
    #: See `demands`.
    demands: str
    #: When it was read, seconds since 1970 UTC.
    at: int = 0

    def believed(self, now: int) -> "SeenSummary | None":
        """Return this, or None when it has to be read again."""
        return self if 0 <= now - self.at < _BELIEVED_S else None


def demands(remote: Remote) -> str:
    """Return a digest of what must be signed by whom."""
    digest = hashlib.sha256()
    flags = (remote.verifies_commits, remote.verifies_summary, remote.verifies_ed25519, remote.ed25519_keys)
    digest.update(repr((remote.content_url, flags, len(remote.gpg_key_paths))).encode())
    for path in remote.gpg_key_paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def is_of(seen: SeenSummary | None, remote: Remote, branch: str) -> bool:
    """Tell whether `seen` says something of the branch as it would be judged now."""
    return seen is not None and (seen.url, seen.branch, seen.demands) == (remote.url, branch, demands(remote))
