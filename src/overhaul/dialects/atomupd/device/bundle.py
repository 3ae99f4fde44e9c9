"""A RAUC bundle that holds a casync index: checked against a keyring, and read.

    squashfs with manifest.raucm and NAME.caibx | verity hash tree | CMS signature | its length, 8 bytes big-endian

In a `plain` bundle the signature is over the squashfs. In a `verity` bundle the signed data is the manifest itself;
it stands inside the signature, and names the root hash of the squashfs's blocks. There the hashes are worked out here
from the bytes, so that neither kind needs the kernel. OpenSSL's program checks the signature, because the library this
project builds on cannot; `unsquashfs` reads the two small files out of a squashfs that was verified before.
"""

import configparser
import hashlib
from dataclasses import dataclass
from pathlib import Path

from overhaul.content.index import CHUNK_SIZE_MAX, Index, read_index
from overhaul.errors import DeviceError, TrustError
from overhaul.host.processes import ProgramFailedError, run

#: A bundle that only holds an index is small; one this big holds the image itself.
MAX_BUNDLE_BYTES = 64 << 20
_LENGTH_BYTES = 8
_MAX_SIGNATURE_BYTES = 1 << 20
_BLOCK = 4096


class UntrustedBundleError(TrustError):
    """A bundle whose signature does not verify."""

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"The bundle {url} cannot be trusted ({reason}); nothing of it was used.")


class UnsuitableBundleError(DeviceError):
    """A trusted bundle that this way of installing cannot install."""

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(
            f"The bundle {url} cannot be installed into slots of Overhaul: {reason}. Set Method = rauc under "
            "[Install], or publish it as a casync bundle with one image."
        )


@dataclass(frozen=True, kw_only=True)
class BundleContent:
    """What a verified bundle says."""

    compatible: str
    version: str
    image_size: int
    index: Index


def open_bundle(path: Path, *, url: str, keyring: Path, work: Path) -> BundleContent:
    """Return the content of the bundle in the file `path`, verified.

    Args:
        path: The bundle; nobody else may be able to change it meanwhile.
        url: What errors call it.
        keyring: PEM file with the authorities that may have signed it.
        work: Directory for temporary files.

    Raises:
        UntrustedBundleError: It is not signed by one of them, or was changed.
        UnsuitableBundleError: It does not hold exactly one image as a casync index.
        MalformedIndexError: Its index is none.
    """
    data = path.read_bytes()
    body, signature = _divided(data, url)
    payload_file, signature_file = work / "bundle.squashfs", work / "bundle.cms"
    try:
        payload_file.write_bytes(body)
        signature_file.write_bytes(signature)
        _verify(body, payload_file, signature_file, url=url, keyring=keyring)
        manifest = _parsed(_unpacked(payload_file, "manifest.raucm", url), url)
        name, size = _image_of(manifest, url)
        index = read_index(_unpacked(payload_file, name, url))
    finally:
        payload_file.unlink(missing_ok=True)
        signature_file.unlink(missing_ok=True)
    if index.size != size:
        raise UnsuitableBundleError(url=url, reason=f"its index has {index.size} bytes and its manifest says {size}")
    if any(chunk.size > CHUNK_SIZE_MAX for chunk in index):
        raise UnsuitableBundleError(url=url, reason="its chunks are larger than casync's standard")
    return BundleContent(
        compatible=manifest.get("update", "compatible", fallback=""),
        version=manifest.get("update", "version", fallback=""),
        image_size=size,
        index=index,
    )


def verity_root(data: bytes | memoryview, *, salt: bytes) -> bytes:
    """Return the root of dm-verity's hash tree over whole blocks of `data`: SHA-256, salt first, 4096-byte blocks."""
    level = [_block_hash(data[start : start + _BLOCK], salt) for start in range(0, len(data), _BLOCK)]
    while len(level) > 1:
        joined = b"".join(level)
        joined += bytes(-len(joined) % _BLOCK)
        level = [_block_hash(joined[start : start + _BLOCK], salt) for start in range(0, len(joined), _BLOCK)]
    return level[0]


def _block_hash(block: bytes | memoryview, salt: bytes) -> bytes:
    return hashlib.sha256(salt + bytes(block)).digest()


def _divided(data: bytes, url: str) -> tuple[bytes, bytes]:
    """Return what is signed, or was meant to be, and the signature."""
    size = int.from_bytes(data[-_LENGTH_BYTES:], "big")
    if len(data) <= _LENGTH_BYTES or not 0 < size <= min(_MAX_SIGNATURE_BYTES, len(data) - _LENGTH_BYTES - 1):
        raise UntrustedBundleError(url=url, reason="it does not end with a signature")
    end = len(data) - _LENGTH_BYTES - size
    return data[:end], data[end:-_LENGTH_BYTES]


def _verify(body: bytes, payload: Path, signature: Path, *, url: str, keyring: Path) -> None:
    """Check the signature, and leave in `payload` only what it covers."""
    common: list[str | Path] = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", signature]
    authorities: list[str | Path] = ["-CAfile", keyring, "-no-CApath", "-no-CAstore"]
    try:
        signed = run([*common, *authorities]).stdout
    except ProgramFailedError:
        # It does not carry what it signs, so it is over the squashfs, or it is not good at all.
        try:
            run([*common, *authorities, "-content", payload, "-out", "/dev/null"])
        except ProgramFailedError as error:
            raise UntrustedBundleError(url=url, reason=_last_words(error.stderr_tail)) from error
        return
    payload.write_bytes(_verity_payload(body, _parsed(signed, url), url))


def _verity_payload(body: bytes, manifest: configparser.ConfigParser, url: str) -> bytes:
    try:
        wanted = bytes.fromhex(manifest.get("bundle", "verity-hash"))
        salt = bytes.fromhex(manifest.get("bundle", "verity-salt"))
        tree_size = manifest.getint("bundle", "verity-size")
    except (configparser.Error, ValueError) as error:
        raise UntrustedBundleError(url=url, reason="its signed manifest lacks the hash of the content") from error
    size = len(body) - tree_size
    if not 0 < size <= len(body) or size % _BLOCK or verity_root(memoryview(body)[:size], salt=salt) != wanted:
        raise UntrustedBundleError(url=url, reason="its content does not have the signed hash")
    return body[:size]


def _unpacked(squashfs: Path, name: str, url: str) -> bytes:
    try:
        return run(["unsquashfs", "-cat", squashfs, name]).stdout
    except ProgramFailedError as error:
        raise UnsuitableBundleError(url=url, reason=f"{name} cannot be read from it") from error


def _parsed(text: bytes, url: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text.decode())
    except (configparser.Error, UnicodeError) as error:
        raise UnsuitableBundleError(url=url, reason="its manifest cannot be read") from error
    return parser


def _image_of(manifest: configparser.ConfigParser, url: str) -> tuple[str, int]:
    images = [section for section in manifest.sections() if section.startswith("image.")]
    if len(images) != 1:
        raise UnsuitableBundleError(url=url, reason=f"it holds {len(images)} images")
    hooked = [section for section in ("hooks", "handler") if manifest.has_section(section)]
    if hooked or manifest.has_option(images[0], "hooks"):
        raise UnsuitableBundleError(url=url, reason="it wants to run hooks")
    name = manifest.get(images[0], "filename", fallback="")
    size = manifest.get(images[0], "size", fallback="")
    if not name.endswith(".caibx") or "/" in name or name.startswith("-"):
        raise UnsuitableBundleError(url=url, reason="its image is not a casync index")
    if not size.isascii() or not size.isdigit() or len(size) > 18:
        raise UnsuitableBundleError(url=url, reason="its manifest does not state the size of the image")
    return name, int(size)


def _last_words(stderr_tail: str) -> str:
    """Return OpenSSL's reason without its numbers."""
    words = stderr_tail.rsplit(":", 2)[-2:] if ":" in stderr_tail else [stderr_tail]
    return " ".join(part.strip() for part in words if part.strip()) or "its signature does not verify"
