"""The flag that keeps a deployment's top directory as it is, where the file system has it."""

import fcntl
import os
import struct
from pathlib import Path

#: FS_IOC_GETFLAGS and FS_IOC_SETFLAGS of linux/fs.h, whose numbers hold the size of a long.
_LONG = struct.calcsize("@l")
_GET_FLAGS = 0x80006601 | _LONG << 16
_SET_FLAGS = 0x40006602 | _LONG << 16
_IMMUTABLE = 0x10


def set_immutable(directory: Path, *, immutable: bool) -> None:
    """Set or clear the flag; a file system without it, or a container that may not, goes without."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        # The kernel moves an int, whatever the number says.
        answer = fcntl.ioctl(descriptor, _GET_FLAGS, struct.pack("@i4x", 0))
        flags = struct.unpack("@i", answer[:4])[0]
        wanted = flags | _IMMUTABLE if immutable else flags & ~_IMMUTABLE
        if wanted != flags:
            fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("@i4x", wanted))
    except OSError:
        return
    finally:
        os.close(descriptor)
