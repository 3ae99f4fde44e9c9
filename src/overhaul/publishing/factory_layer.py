"""The first slot's layer of configuration on a new disk, and whether an initrd would lay it over /etc.

A slot that was written by an update has its layer from the agent (`install.configuration.layers`). The one that the
factory wrote gets an empty one here: what an owner changes then lies beside the image, whose bytes stay those that
were signed, and the root file system may stay read-only. The layer says what the release ships, so that the first
update knows what was changed.
"""

from pathlib import Path

from overhaul.content.delta.archives import members
from overhaul.content.delta.compressed import find_packed
from overhaul.errors import OperatorError
from overhaul.install.configuration.layers import SHIPPED, UPPER, WORK
from overhaul.release.configuration import Configuration, encode_configuration

#: The script of deploy/configuration, wherever in the initial RAM file system it lies.
LAYING_SCRIPT = "overhaul-mount-etc"
_LAYER = "factory"


class NoLayersInInitrdError(OperatorError):
    """The image's initial RAM file system does not lay the layers over /etc."""

    def __init__(self, *, initrd: str, reason: str) -> None:
        self.initrd = initrd
        self.reason = reason
        super().__init__(
            f"Configuration cannot be carried over with the initrd {initrd} of the image ({reason}); put "
            "deploy/configuration into the image, build its initrd anew, and publish it again."
        )


def require_laying_initrd(initrd: bytes | None, *, name: str) -> None:
    """Refuse an initrd without the script that lays a slot's layer over /etc.

    Raises:
        NoLayersInInitrdError: There is none, or it is packed in a way that cannot be looked into.
    """
    if initrd is None:
        raise NoLayersInInitrdError(initrd=name, reason="there is no such file")
    packed = find_packed(initrd)
    found = {member.name for part in (initrd, b"" if packed is None else packed.plain) for member in members(part)}
    if not found:
        raise NoLayersInInitrdError(initrd=name, reason="it is no archive that can be looked into here")
    if not any(path.rpartition(b"/")[2] == LAYING_SCRIPT.encode() for path in found):
        raise NoLayersInInitrdError(initrd=name, reason=f"{LAYING_SCRIPT} is not in it")


def make_factory_layer(directory: Path, slot: str, shipped: Configuration | None) -> None:
    """Make `directory`, which holds the layers, with an empty one for `slot`.

    Args:
        directory: Not there yet.
        slot: The one that the factory writes.
        shipped: What its release has below /etc, where that is known.
    """
    layer = directory / f"{slot}.{_LAYER}"
    directory.mkdir(mode=0o700)
    layer.mkdir(mode=0o700)
    (layer / WORK).mkdir(mode=0o700)
    upper = layer / UPPER
    upper.mkdir()
    # The upper directory is what /etc itself looks like.
    top = None if shipped is None else shipped.nodes.get(b"")
    upper.chmod(0o755 if top is None else top.mode)
    if shipped is not None:
        (layer / SHIPPED).write_bytes(encode_configuration(shipped))
    (directory / slot).symlink_to(layer.name)
