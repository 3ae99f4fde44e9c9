"""The signed state moves all at once, and only for one of two writers."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from overhaul.policy.document import encode_policy, policy_target_path
from overhaul.policy.edit import new_policy
from overhaul.repository.layout import public_key
from overhaul.repository.memory import MemoryStorage
from overhaul.repository.signed import OvertakenError, SignedChange, check_trusted, read_published
from overhaul.repository.storage import Storage, StorageFailedError
from overhaul.trust.keyring import Keyring, generate_demo_keys
from overhaul.trust.layout import TIMESTAMP_KEY
from overhaul.trust.roles import Lifetimes

_NOW = datetime(2026, 5, 1, tzinfo=UTC)


class _Held:
    def check(self) -> None:
        """Do nothing: the lock is held."""


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return generate_demo_keys(tmp_path_factory.mktemp("keys"), products=("kiosk",))


@pytest.fixture
def storage(keyring: Keyring) -> MemoryStorage:
    storage = MemoryStorage()
    change = _change(storage, keyring)
    change.editor.create(("kiosk",))
    assert change.commit()
    return storage


def _change(storage: Storage, keyring: Keyring, *, later: int = 0) -> SignedChange:
    now = _NOW + timedelta(hours=later)
    return SignedChange(storage=storage, lock=_Held(), keyring=keyring, now=now, lifetimes=Lifetimes())


def _put(change: SignedChange, channel: str) -> None:
    policy = new_policy(product="kiosk", channel=channel, now=int(change.now.timestamp()))
    change.editor.put_target(policy_target_path("kiosk", channel), encode_policy(policy))


def test_what_was_committed_is_published_and_trusted(storage: MemoryStorage, keyring: Keyring) -> None:
    change = _change(storage, keyring)
    _put(change, "beta")
    assert change.commit()

    published = read_published(storage, now=_NOW)
    check_trusted(published)
    assert [policy.channel for policy in published.policies.values()] == ["beta"]


def test_no_change_writes_nothing(storage: MemoryStorage, keyring: Keyring) -> None:
    before = [(one.key, storage.read(one.key)) for one in storage.list_objects()]

    assert not _change(storage, keyring).commit()
    assert [(one.key, storage.read(one.key)) for one in storage.list_objects()] == before


def test_the_slower_of_two_writers_changes_nothing_devices_see(storage: MemoryStorage, keyring: Keyring) -> None:
    slow, quick = _change(storage, keyring), _change(storage, keyring, later=1)
    _put(slow, "beta")
    _put(quick, "stable")
    assert quick.commit()

    with pytest.raises(OvertakenError):
        slow.commit()
    published = read_published(storage, now=_NOW)
    check_trusted(published)
    assert [policy.channel for policy in published.policies.values()] == ["stable"]


@pytest.mark.parametrize("writes", range(1, 5))
def test_a_writer_overtaken_between_its_writes_is_stopped(
    storage: MemoryStorage, keyring: Keyring, writes: int
) -> None:
    class _Overtaken:
        def __init__(self) -> None:
            self.checks = 0

        def check(self) -> None:
            self.checks += 1
            if self.checks == writes:
                quick = _change(storage, keyring, later=1)
                _put(quick, "stable")
                assert quick.commit()

    slow = SignedChange(storage=storage, lock=_Overtaken(), keyring=keyring, now=_NOW, lifetimes=Lifetimes())
    _put(slow, "beta")

    with pytest.raises(OvertakenError):
        slow.commit()
    published = read_published(storage, now=_NOW)
    check_trusted(published)
    assert [policy.channel for policy in published.policies.values()] == ["stable"]


@pytest.mark.parametrize("writes", range(1, 5))
def test_what_a_dead_writer_left_is_overwritten_by_the_next(
    storage: MemoryStorage, keyring: Keyring, writes: int
) -> None:
    class _Dying:
        def __init__(self) -> None:
            self.checks = 0

        def check(self) -> None:
            self.checks += 1
            if self.checks == writes:
                raise KeyboardInterrupt

    dead = SignedChange(storage=storage, lock=_Dying(), keyring=keyring, now=_NOW, lifetimes=Lifetimes())
    _put(dead, "beta")
    with pytest.raises(KeyboardInterrupt):
        dead.commit()
    check_trusted(read_published(storage, now=_NOW))

    change = _change(storage, keyring, later=1)
    _put(change, "stable")
    assert change.commit()
    published = read_published(storage, now=_NOW)
    check_trusted(published)
    assert [policy.channel for policy in published.policies.values()] == ["stable"]


def test_a_storage_that_returns_other_bytes_stops_before_the_timestamp(keyring: Keyring, tmp_path: Path) -> None:
    class _Forgetful(MemoryStorage):
        def create(self, key: str, data: bytes) -> None:
            super().create(key, data[:-1] if "snapshot" in key else data)

    storage = _Forgetful()
    change = _change(storage, keyring)
    change.editor.create(("kiosk",))

    with pytest.raises(StorageFailedError, match="snapshot"):
        change.commit()
    assert storage.stat(public_key(TIMESTAMP_KEY)) is None
