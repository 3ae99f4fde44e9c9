"""The file that says what a release ships: round trip, damage, and parts fetched alone."""

import hashlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.loopback import LoopbackServer, serving

from overhaul.content.cache import ContentCache
from overhaul.content.configuration import PublishedConfiguration, read_configuration, write_configuration
from overhaul.errors import TrustError
from overhaul.release.configuration import (
    Configuration,
    MalformedConfigurationError,
    Node,
    NodeKind,
    decode_configuration,
    encode_configuration,
)
from overhaul.release.record import ConfigurationRef, FileRef
from overhaul.transfer.fetching import WrongDigestError
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings

CONTENTS = {hashlib.sha256(text).digest(): text for text in (b"", b"one\n", b"two\n" * 1000)}
NODES = {b"": Node(kind=NodeKind.DIRECTORY, mode=0o755)} | {
    b"file-%d" % number: Node(kind=NodeKind.FILE, mode=0o644, size=len(text), sha256=digest)
    for number, (digest, text) in enumerate(CONTENTS.items())
}
WRITTEN = write_configuration(NODES, CONTENTS)
PATH = "content/configurations/00/x.configuration"
REF = ConfigurationRef(
    file=FileRef(path=PATH, size=len(WRITTEN.data), sha256=hashlib.sha256(WRITTEN.data).hexdigest()),
    header_size=WRITTEN.header_size,
    header_sha256=hashlib.sha256(WRITTEN.data[: WRITTEN.header_size]).hexdigest(),
    decoded_size=WRITTEN.decoded_size,
)


def opened(server: LoopbackServer, cache: Path) -> PublishedConfiguration:
    fetcher = open_fetcher(FetchSettings(allow_http=True))
    return PublishedConfiguration(REF, base_url=server.url, fetcher=fetcher, cache=ContentCache(cache))


def test_a_device_fetches_the_header_and_each_content_once(tmp_path: Path) -> None:
    with serving() as server:
        server.files[PATH] = WRITTEN.data
        for _ in range(2):
            shipped = opened(server, tmp_path / "cache")
            assert shipped.configuration.nodes == NODES
            assert {digest: shipped.content(digest) for digest in CONTENTS} == CONTENTS

        assert len(server.requests) == 1 + len(CONTENTS)
        assert shipped.content(bytes(32)) is None


def test_any_changed_byte_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with serving() as server:
        for place in range(0, len(WRITTEN.data), 7):
            data = bytearray(WRITTEN.data)
            data[place] ^= 0x40
            server.files[PATH] = bytes(data)
            cache = tmp_path / str(place)
            with pytest.raises(WrongDigestError):  # noqa: PT012 - which call meets it follows from the place
                shipped = opened(server, cache)
                for digest in CONTENTS:
                    shipped.content(digest)


def test_the_same_tree_gives_the_same_bytes() -> None:
    assert write_configuration(dict(reversed(NODES.items())), dict(reversed(CONTENTS.items()))) == WRITTEN


@pytest.mark.parametrize("size", range(WRITTEN.header_size))
def test_a_header_that_is_cut_is_refused(size: int) -> None:
    with pytest.raises(TrustError):
        read_configuration(WRITTEN.data[:size], decoded_size=WRITTEN.decoded_size)


ROOT = NODES[b""]
PLAIN = Node(kind=NodeKind.FILE, mode=0o644, sha256=bytes(32))


@pytest.mark.parametrize(
    "nodes",
    [
        {b"": PLAIN},
        {b"x": PLAIN},
        {b"": ROOT, b"../x": PLAIN},
        {b"": ROOT, b"/x": PLAIN},
        {b"": ROOT, b"x/": PLAIN},
        {b"": ROOT, b"a/b": PLAIN},
        {b"": ROOT, b"a": PLAIN, b"a/b": PLAIN},
        {b"": ROOT, b".": PLAIN},
        {b"": ROOT, b"x\0y": PLAIN},
        {b"": ROOT, b"x": Node(kind=NodeKind.FILE, mode=0o644)},
        {b"": ROOT, b"x": Node(kind=NodeKind.LINK, mode=0o777)},
        {b"": ROOT, b"x": Node(kind=NodeKind.DIRECTORY, mode=0o755, target=b"y")},
    ],
)
def test_what_is_no_tree_is_refused(nodes: dict[bytes, Node]) -> None:
    with pytest.raises(MalformedConfigurationError):
        decode_configuration(encode_configuration(Configuration(nodes=nodes)))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_in_one_sentence(data: bytes) -> None:
    with pytest.raises(MalformedConfigurationError, match="Publish the release again"):
        decode_configuration(data)


def test_a_later_format_is_refused() -> None:
    later = encode_configuration(msgspec.structs.replace(Configuration(nodes={b"": ROOT}), format=2))
    with pytest.raises(MalformedConfigurationError, match="format is 2"):
        decode_configuration(later)
