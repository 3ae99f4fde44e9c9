"""Files that several accounts of one machine write."""

import os
from contextlib import suppress
from pathlib import Path
from stat import S_IRGRP, S_IWGRP


def create_as_directory_says(path: Path) -> None:
    """Make an empty file unless there is one: whoever may write its directory by group may write it, others not at all.

    So it does not hang on the umask of who happens to come first, such as an administrator with a command. A directory
    with the set-group-ID bit also decides the group.

    Raises:
        OSError: The file cannot be made.
    """
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            group = path.parent.stat().st_mode & (S_IRGRP | S_IWGRP)
            if group & S_IWGRP:
                os.fchmod(descriptor, 0o600 | group)
        finally:
            os.close(descriptor)
