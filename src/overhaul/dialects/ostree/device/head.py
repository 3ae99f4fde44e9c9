"""What a remote offers on a branch, and whether its commit may be taken: before anything of it is stored.

A commit is taken when its bytes are those its name promises, every kind of signature that the remote's configuration
asks for is there and good, it says that it belongs to the branch, and it is not older than what the device has.
"""

from dataclasses import dataclass, field

from overhaul.dialects.ostree.device.barerepo import metadata_limit
from overhaul.dialects.ostree.device.remote import Remote, RemoteError
from overhaul.dialects.ostree.device.seen import SeenSummary, is_of
from overhaul.dialects.ostree.errors import MalformedOstreeDataError, UnsignedOstreeError
from overhaul.dialects.ostree.layout import (
    SUMMARY,
    SUMMARY_SIGNATURE,
    Refspec,
    check_ref,
    decode_ref,
    delta_index_path,
    object_path,
    ref_path,
)
from overhaul.dialects.ostree.objects import (
    Commit,
    Metadata,
    ObjectName,
    ObjectType,
    check_object,
    decode_commit,
    decode_metadata,
)
from overhaul.dialects.ostree.signatures import binary_keys, verify_ed25519, verify_gpg
from overhaul.dialects.ostree.summary import Deltas, Summary, decode_delta_index, decode_summary
from overhaul.errors import NetworkError, TrustError
from overhaul.transfer.fetcher import Fetcher, OversizeError, RefusedStatusError, Request
from overhaul.transfer.fetching import fetch_bytes

_SUMMARY_LIMIT_BYTES = 32 << 20
_REF_LIMIT_BYTES = 256
#: Not there; some servers say so, others forbid what they do not have.
_ABSENT = frozenset({403, 404, 410})


class NoSuchBranchError(NetworkError):
    """The remote does not have the branch."""

    retryable = False

    def __init__(self, *, url: str, branch: str) -> None:
        self.url = url
        self.branch = branch
        super().__init__(f"{url} has no branch {branch}; publish it there, or correct the deployment's origin.")


class OlderCommitError(TrustError):
    """A commit that is older than what the device has: an old release replayed, or a publisher's clock gone wrong."""

    def __init__(self, *, commit: str, timestamp: int, known_timestamp: int) -> None:
        self.commit = commit
        self.timestamp = timestamp
        self.known_timestamp = known_timestamp
        super().__init__(
            f"The commit {commit} is of {timestamp}, older than what this device has ({known_timestamp}), and was "
            "refused. Publish a newer commit, or allow it once with --allow-downgrade."
        )


class WrongBranchError(TrustError):
    """A signed commit that belongs to other branches."""

    def __init__(self, *, commit: str, branch: str, bindings: tuple[str, ...]) -> None:
        self.commit = commit
        self.branch = branch
        self.bindings = bindings
        names = ", ".join(bindings) or "no branch"
        super().__init__(f"The commit {commit} is offered as {branch}, but it was made for {names}; it was refused.")


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a branch names now."""

    branch: str
    #: 64 hexadecimal digits.
    commit: str
    #: The deltas the summary lists, or nothing.
    deltas: Deltas = field(default_factory=dict)
    has_summary: bool = False
    has_delta_indexes: bool = False
    #: The server's name of the summary; empty when it gave none.
    etag: str = ""
    #: The server still has the summary that was seen; nothing but the commit's name is known here then.
    is_unchanged: bool = False


@dataclass(frozen=True, kw_only=True)
class VerifiedCommit:
    """A commit that may be taken."""

    checksum: str
    data: bytes
    #: Its signatures as they came; None without any.
    detached: bytes | None
    commit: Commit


def fetch_optional(fetcher: Fetcher, url: str, *, limit_bytes: int) -> bytes | None:
    """Return a file of the remote, or None when it has no such file."""
    try:
        return fetch_bytes(fetcher, url, limit_bytes=limit_bytes)
    except RefusedStatusError as error:
        if error.status in _ABSENT:
            return None
        raise


def fetch_head(fetcher: Fetcher, remote: Remote, branch: str, *, seen: SeenSummary | None = None) -> Head:
    """Return what the branch names on the remote now; `seen` spares the summary when the server still has that one.

    Raises:
        NoSuchBranchError: There is no such branch.
        UnsignedOstreeError: The summary must be signed, and is not by a trusted key.
    """
    check_ref(branch)
    known = seen if seen is not None and is_of(seen, remote, branch) else None
    summary, etag = _fetch_summary(fetcher, remote, etag="" if known is None else known.etag)
    if summary is None and etag and known is not None:
        return Head(branch=branch, commit=known.commit, has_summary=True, etag=etag, is_unchanged=True)
    if summary is None:
        url = f"{remote.url}/{ref_path(Refspec(branch))}"
        data = fetch_optional(fetcher, url, limit_bytes=_REF_LIMIT_BYTES)
        if data is None:
            raise NoSuchBranchError(url=remote.url, branch=branch)
        return Head(branch=branch, commit=decode_ref(data, what=f"branch {branch}").hex())
    entry = summary.branches.get(branch)
    if entry is None:
        raise NoSuchBranchError(url=remote.url, branch=branch)
    return Head(
        branch=branch,
        commit=entry.commit.hex(),
        deltas={ends: digest for ends, digest in summary.deltas.items() if ends[1] == entry.commit},
        has_summary=True,
        has_delta_indexes=summary.has_delta_indexes,
        etag=etag,
    )


def fetch_delta_index(fetcher: Fetcher, remote: Remote, head: Head) -> Deltas:
    """Return the deltas to the head that its index lists; nothing when it has none."""
    path = delta_index_path(bytes.fromhex(head.commit))
    data = fetch_optional(fetcher, f"{remote.content_url}/{path}", limit_bytes=metadata_limit())
    return {} if data is None else decode_delta_index(data, what=path)


def fetch_commit(
    fetcher: Fetcher, remote: Remote, head: Head, *, known_timestamp: int | None, local: bytes | None = None
) -> VerifiedCommit:
    """Return the head's commit, verified in every way the remote asks for.

    Args:
        fetcher: Asks the remote.
        remote: Says what must be signed.
        head: The commit's name and branch.
        known_timestamp: The commit may not be older; None for no limit.
        local: The commit's bytes, for one that is on the device.

    Raises:
        UnsignedOstreeError: A signature is missing or not good.
        WrongChecksumError: The bytes are another commit's.
        WrongBranchError: It belongs to another branch.
        OlderCommitError: It is too old.
    """
    name = ObjectName(ObjectType.COMMIT, bytes.fromhex(head.commit))
    meta_name = ObjectName(ObjectType.COMMITMETA, name.checksum)
    detached = fetch_optional(fetcher, f"{remote.content_url}/{object_path(meta_name)}", limit_bytes=metadata_limit())
    data = local
    if data is None:
        data = fetch_bytes(fetcher, f"{remote.content_url}/{object_path(name)}", limit_bytes=metadata_limit())
    check_object(name, data)
    verify_signatures(data, detached, remote, what=f"commit {head.commit}")
    commit = decode_commit(data)
    bindings = commit.ref_bindings
    if bindings is not None and head.branch not in bindings:
        raise WrongBranchError(commit=head.commit, branch=head.branch, bindings=bindings)
    if known_timestamp is not None and commit.timestamp < known_timestamp:
        raise OlderCommitError(commit=head.commit, timestamp=commit.timestamp, known_timestamp=known_timestamp)
    return VerifiedCommit(checksum=head.commit, data=data, detached=detached, commit=commit)


def verify_signatures(data: bytes, detached: bytes | None, remote: Remote, *, what: str) -> None:
    """Check everything that the remote's configuration wants signed.

    Raises:
        UnsignedOstreeError: A signature is missing or not good.
    """
    if not (remote.verifies_commits or remote.verifies_ed25519):
        return
    if detached is None:
        raise UnsignedOstreeError(what=what, reason="it has no signatures")
    metadata: Metadata = decode_metadata(detached, what=f"signatures of {what}")
    if remote.verifies_commits:
        verify_gpg(data, metadata, keyring=_keyring(remote), what=what)
    if remote.verifies_ed25519:
        verify_ed25519(data, metadata, public_keys=remote.ed25519_keys, what=what)


def _fetch_summary(fetcher: Fetcher, remote: Remote, *, etag: str) -> tuple[Summary | None, str]:
    """Return the summary, or None, and its entity tag; None and `etag` when the server still has that one."""
    # A publish between the two requests shows as a bad signature, whichever comes first.
    data, found = _fetch_unless(fetcher, f"{remote.url}/{SUMMARY}", etag)
    if data is None:
        if found:
            return None, found
        if remote.verifies_summary:
            raise UnsignedOstreeError(what="summary", reason="there is none")
        return None, ""
    if remote.verifies_summary:
        signature = fetch_optional(fetcher, f"{remote.url}/{SUMMARY_SIGNATURE}", limit_bytes=metadata_limit())
        if signature is None:
            raise UnsignedOstreeError(what="summary", reason="it has no signature")
        verify_gpg(data, decode_metadata(signature, what=SUMMARY_SIGNATURE), keyring=_keyring(remote), what="summary")
    return decode_summary(data), found


def _fetch_unless(fetcher: Fetcher, url: str, etag: str) -> tuple[bytes | None, str]:
    """Return a file and its entity tag; None for what is still `etag`, and None without a tag for what is not there."""
    with fetcher.fetch(Request(url=url, etag=etag or None)) as response:
        if response.status == 304 and etag:
            return None, etag
        if response.status in _ABSENT:
            return None, ""
        if response.status != 200:
            raise RefusedStatusError.of(response)
        data = bytearray()
        for piece in response.body:
            data += piece
            if len(data) > _SUMMARY_LIMIT_BYTES:
                raise OversizeError(url=response.url, limit_bytes=_SUMMARY_LIMIT_BYTES)
        return bytes(data), response.headers.get("etag", "")


def _keyring(remote: Remote) -> bytes:
    found = []
    for path in remote.gpg_key_paths:
        try:
            found.append(binary_keys(path.read_bytes()))
        except (OSError, MalformedOstreeDataError) as error:
            # Among the others it would make all of them unreadable.
            raise RemoteError(remote=remote.name, reason=f"its key ring {path} cannot be read ({error})") from error
    return b"".join(found)
