"""A signed repository in memory, and the thief's tools on it.

`SignedTree` is published through the real editor; `SignedFiles` takes any that exists. `forge` signs whatever a
thief of given keys could sign, and `relist` makes the online roles vouch for it, as a thief of these could. `Device`
is the real client with a clock that can be set.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, MetaFile, TargetFile

from overhaul.transfer.fetcher import Fetcher, Request, Response
from overhaul.trust.client import TrustedRepository
from overhaul.trust.editor import MetadataEditor
from overhaul.trust.keyring import Keyring
from overhaul.trust.keys import KeyCount, KeyPlan
from overhaul.trust.layout import TIMESTAMP_KEY, metadata_key, target_key
from overhaul.trust.roles import SIGNED_AT

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
PLAN = KeyPlan(exceptions={"alpha": KeyCount(keys=2, threshold=2)})
STABLE = "alpha/policy/stable.json"
BETA = "alpha/policy/beta.json"
RELEASE = "alpha/releases/desk/amd64/1.0/20260601.json"
OTHER_RELEASE = "other/releases/desk/amd64/1.0/20260601.json"


class SignedFiles:
    """What is published, key by key, and the keys it is signed with."""

    def __init__(self, files: dict[str, bytes], keyring: Keyring, *, now: datetime = NOON) -> None:
        self.files = files
        self.keyring = keyring
        self.now = now

    def edit(self, change: Callable[[MetadataEditor], object]) -> list[str]:
        """Publish a change; return the keys written, in order."""
        editor = MetadataEditor(self.files.get, self.keyring, self.now)
        change(editor)
        changes = editor.changes()
        self.files.update(changes)
        return [key for key, _data in changes]

    def put(self, path: str, data: bytes) -> list[str]:
        """Publish `data` under `path`."""
        return self.edit(lambda editor: editor.put_target(path, data))

    def rotate(self, role: str) -> list[str]:
        """Publish new keys for `role`."""
        self.keyring.renew(role)
        return self.edit(lambda editor: editor.rotate(role))

    def version(self, role: str) -> int:
        """Return the published version of `role`."""
        if role == "timestamp":
            return int(self.read(TIMESTAMP_KEY).signed.version)
        if role == "root":
            return max(int(key.split("/")[1].split(".")[0]) for key in self.files if key.endswith(".root.json"))
        snapshot_version: int = self.read(TIMESTAMP_KEY).signed.snapshot_meta.version
        if role == "snapshot":
            return snapshot_version
        return int(self.read(metadata_key("snapshot", snapshot_version)).signed.meta[f"{role}.json"].version)

    def key_of(self, role: str) -> str:
        """Return the key under which `role` is published now."""
        return TIMESTAMP_KEY if role == "timestamp" else metadata_key(role, self.version(role))

    def read(self, key: str) -> Metadata[Any]:
        """Return the metadata published under `key`."""
        return Metadata.from_bytes(self.files[key])

    def forge(
        self,
        role: str,
        change: Callable[[Any], object] = lambda _signed: None,
        *,
        signed_by: str | None = None,
        signatures: int | None = None,
        keyring: Keyring | None = None,
    ) -> bytes:
        """Return the next version of `role` with a change, signed by the keys of `signed_by` (its own when None).

        `signatures` keeps only so many of them.
        """
        metadata = self.read(self.key_of(role))
        metadata.signed.version += 1
        change(metadata.signed)
        metadata.signatures.clear()
        ring = keyring or self.keyring
        keyids = [key.keyid for key in ring.role(signed_by or role).keys]
        for signer in ring.signers(role, keyids=keyids, threshold=1)[:signatures]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def usurp(self, thief: Keyring) -> bytes:
        """Return a next root that names the thief's keys and is signed by these alone."""

        def name_them(root: Any) -> None:
            for keyid in list(root.roles["root"].keyids):
                root.revoke_key(keyid, "root")
            for key in thief.role("root").keys:
                root.add_key(key.as_tuf(), "root")

        return self.forge("root", name_them, keyring=thief)

    def relist(self, *forged: tuple[str, bytes], forget: Sequence[str] = ()) -> None:
        """Publish forged roles with a snapshot and a timestamp that name them, as a thief of the online keys can."""

        def list_them(snapshot: Any) -> None:
            for role, data in forged:
                version = Metadata.from_bytes(data).signed.version
                snapshot.meta[f"{role}.json"] = MetaFile.from_data(version, data, ["sha256"])
            for role in forget:
                del snapshot.meta[f"{role}.json"]

        for role, data in forged:
            self.files[metadata_key(role, Metadata.from_bytes(data).signed.version)] = data
        self.announce(self.forge("snapshot", list_them))

    def announce(self, snapshot: bytes, change: Callable[[Any], object] = lambda _signed: None) -> None:
        """Publish `snapshot` with a timestamp that names it, as a thief of the timestamp key can."""
        version = Metadata.from_bytes(snapshot).signed.version

        def name_it(timestamp: Any) -> None:
            timestamp.snapshot_meta = MetaFile.from_data(version, snapshot, ["sha256"])
            change(timestamp)

        self.files[metadata_key("snapshot", version)] = snapshot
        self.files[TIMESTAMP_KEY] = self.forge("timestamp", name_it)

    def add_bytes(self, path: str, data: bytes) -> TargetFile:
        """Lay the bytes of a target into the tree and return what would have to be signed for them."""
        target = TargetFile.from_data(path, data, ["sha256"])
        self.files[target_key(path, target.hashes["sha256"])] = data
        return target


class SignedTree(SignedFiles):
    """A new repository, with keys of its own."""

    def __init__(self, keys: Path, *, products: Sequence[str] = ("alpha", "other"), with_builds: bool = False) -> None:
        super().__init__({}, Keyring.generate(keys, products=products, plan=PLAN, with_builds=with_builds, demo=True))
        self.edit(lambda editor: editor.create(products, with_builds=with_builds))


class MemoryFetcher:
    """A server in memory."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Answer from the files."""
        data = self.files.get(request.url.removeprefix("memory:/"))
        body = b"" if data is None else data
        headers = {"etag": f'"{hashlib.sha256(body).hexdigest()}"'}
        yield Response(url=request.url, status=404 if data is None else 200, headers=headers, body=iter([body]))


class Clock:
    """A clock that stands where it is set."""

    def __init__(self, moment: datetime = NOON) -> None:
        self.moment = moment

    def __call__(self) -> datetime:
        return self.moment

    def forward(self, **units: float) -> None:
        """Let time pass."""
        self.moment += timedelta(**units)


class Device:
    """A device that trusts the first root of a tree."""

    def __init__(self, state: Path, url: str, root: bytes, fetcher: Fetcher) -> None:
        self.state = state
        self.clock = Clock()
        self.fetcher = fetcher
        self._url, self._root = url, root

    def repository(self, *, accept_builds: bool = False) -> TrustedRepository:
        """Return the client of a process that starts now."""
        return TrustedRepository(
            state_directory=self.state,
            base_url=self._url,
            bootstrap_root=self._root,
            fetcher=self.fetcher,
            clock=self.clock,
            accept_builds=accept_builds,
        )

    def trusted(self) -> dict[str, bytes]:
        """Return everything the device keeps."""
        files = (path for path in sorted(self.state.rglob("*")) if path.is_file())
        return {str(path.relative_to(self.state)): path.read_bytes() for path in files}


def claim_signed_at(moment: datetime) -> Callable[[Any], None]:
    """Return a change that makes a role claim it was signed at `moment` and lasts a year more."""

    def change(signed: Any) -> None:
        signed.unrecognized_fields[SIGNED_AT] = int(moment.timestamp())
        signed.expires = moment + timedelta(days=365)

    return change
