"""The exit codes of `swupd`, as scripts and timers know them."""

from enum import IntEnum


class Exit(IntEnum):
    """What a run ended with."""

    OK = 0
    #: A question answered with no (no update, problems found), or a failure without a code of its own.
    NO = 1
    REQUIRED_BUNDLE = 2
    INVALID_BUNDLE = 3
    MOM = 4
    CANNOT_REMOVE = 5
    CANNOT_RENAME_DIRECTORY = 6
    CANNOT_CREATE = 7
    RECURSING_MANIFESTS = 8
    LOCKED = 9
    CANNOT_RENAME = 10
    NOT_INSTALLED = 13
    MANIFEST = 14
    BAD_OPTION = 15
    NO_CONNECTION = 16
    DOWNLOAD = 17
    UNTAR = 18
    CANNOT_MAKE_DIRECTORY = 19
    VERSION_UNKNOWN = 20
    SIGNATURE = 21
    BAD_TIME = 22
    TLS_CERTIFICATE = 24
    DISK_SPACE = 25
    NOT_IN_MANIFEST = 26
    UNEXPECTED = 27
    SUBPROCESS = 28
    CANNOT_LIST = 29
    TIME_UNKNOWN = 31
    CANNOT_WRITE = 32
    NOT_FIXED = 35
    INVALID_BINARY = 36
    INVALID_REPOSITORY = 37
    INVALID_FILE = 38
