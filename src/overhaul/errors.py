"""Every error a person can meet, in families by who must act.

Each family knows its process exit code, the HTTP status a server answers with, and whether trying again
without changing anything can help. A member holds the facts as attributes and renders one sentence that names
the object and the next step. Code branches on the class, never on the text.

Exit codes 0 to 2 keep their usual meaning (done, unexpected bug, wrong usage). Rooms add members in modules of
their own; they do not add families.
"""

from typing import ClassVar


class OverhaulError(Exception):
    """Something went wrong that Overhaul can explain."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False


class InputError(OverhaulError):
    """What the person or their build handed in is wrong; they correct it and call again."""

    exit_code = 3
    http_status = 400


class TrustError(OverhaulError):
    """Bytes or metadata did not verify; nothing of them was used. The publisher must look at it."""

    exit_code = 4
    http_status = 502


class NetworkError(OverhaulError):
    """The other side could not be reached or broke off; trying again later can help."""

    exit_code = 5
    http_status = 503
    retryable = True


class DeviceError(OverhaulError):
    """This device cannot do it as it is (space, slots, boot loader, health); its owner must act."""

    exit_code = 6
    http_status = 409


class OperatorError(OverhaulError):
    """The repository or server is set up or damaged in a way its operator must mend."""

    exit_code = 7
    http_status = 500


class BusyError(OverhaulError):
    """Somebody else holds the lock; wait for them and call again."""

    exit_code = 8
    http_status = 409
    retryable = True
