"""Inputs made to take memory: a few bytes that announce, or unpack to, far more than anybody has.

They are read by a process that may not grow by more than a device can spare, so that what the C libraries take
counts as well.
"""

import subprocess
import sys

#: Much less than the smallest device has, and much less than any of the inputs asks for.
_GROWTH_BYTES = 96 << 20

_PROGRAM = """
import hashlib, lzma, os, resource, struct, sys
from overhaul.content.delta.apply import apply_segment
from overhaul.content.delta.covers import decode_covers
from overhaul.content.delta.format import MAGIC, read_header
from overhaul.content.delta.segments import Run, Segment, Stream, Unit
from overhaul.content.delta.varints import append_varint
from overhaul.content.frames import read_frames
from overhaul.content.zstd import decompress_frame, decompress_with_prefix
from overhaul.errors import TrustError
from overhaul.policy.document import decode_policy
from overhaul.release.record import decode_release

room = 4 << 20

def numbers(*values):
    body = bytearray()
    for value in values:
        append_varint(body, value)
    return bytes(body)

def packed(data):
    settings = {"id": lzma.FILTER_LZMA2, "dict_size": room, "preset": 0}
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[settings])

def around(body):
    body += b"\\0"  # no groups
    inside = packed(body)
    return struct.pack("<8sII", MAGIC, len(inside), len(body)) + inside

def copies():
    count = room // 3 - 41
    columns = bytes(count) + b"\\1" * count + bytes(count)
    return around(numbers(1, 1 << 30, 1 << 30, 0, count) + columns + b"\\0")

def segments(content, count, *names):
    return around(numbers(1, 9, 9, *names, 0, count) + (bytes(64) + content) * count)

def units(count):
    segment = bytes(64) + b"\\x10" + bytes(48) + numbers(count) + (b"\\0\\1\\0\\1\\0" + bytes(16)) * count
    return around(numbers(1, count, count, 1, 1, 97, 0, 1) + segment)

zeros = packed(bytes(100 << 20))
long_header = struct.pack("<8sII", MAGIC, len(zeros), room) + zeros
long_segment = Segment(
    0, len(zeros), hashlib.sha256(zeros).digest(), bytes(32),
    (Stream("lzma2", len(zeros), room),), (Unit("covers", (Run(0, 1),), (), (room,)),),
)
wide_frame = bytes.fromhex("28b52ffd00a8") + (1 | 2 | 1000 << 3).to_bytes(3, "little") + b"x"
repeated = (2 | 131072 << 3).to_bytes(3, "little") + b"x"
covers = (struct.pack("<II", 1 << 17, 1 << 17) + bytes(20 << 17), b"", bytes(1 << 21))
more_covers = (struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF), b"", b"")

inputs = {
    "names of no letters": (read_header, around(numbers(1, 1, 1, room // 16).ljust(room, b"\\0"))),
    "copies": (read_header, copies()),
    "segments of nothing": (read_header, segments(b"\\0\\0", room // 70, 0)),
    "segments of empty streams": (read_header, segments(b"\\x10" + bytes(49), room // 240, 1, 1, 97)),
    "units of one byte": (read_header, units(1 << 14)),
    "a header that unpacks to more than it states": (read_header, long_header),
    "a stream that unpacks to more than it states": (apply_segment, long_segment, zeros, None, None),
    "a frame with a window of 2 GiB": (lambda: decompress_frame(wide_frame, size=1000),),
    "the same on a prefix": (lambda: decompress_with_prefix(wide_frame, bytes(room), size=1000),),
    "a frame of one byte repeated": (
        lambda: decompress_frame(bytes.fromhex("28b52ffd0038") + repeated * 5000, size=1 << 18),
    ),
    "covers of nothing": (decode_covers, covers, bytes(room), 1 << 21),
    "more covers than bytes": (decode_covers, more_covers, b"", 9),
    "a table without sizes": (read_frames, b"OVHFRM01" + bytes(72 * 200_000)),
    "a policy of brackets": (decode_policy, b"[" * room),
    "a policy of blanks": (decode_policy, b" " * (64 << 20)),
    "a record of brackets": (decode_release, b'{"x":' + b"[" * (2 * room)),
}

def judge(read, *arguments):
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        read(*arguments)
    except TrustError:
        return "refused"
    except BaseException as error:
        return type(error).__name__
    return "read"

for name, (read, *arguments) in inputs.items():
    child = os.fork()
    if child == 0:
        print(f"{name}: {judge(read, *arguments)}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""

#: What is well formed and within the limits is read.
_READ = {"segments of nothing", "segments of empty streams", "units of one byte", "covers of nothing"}


def test_what_is_made_to_take_memory_is_read_or_refused_without_it() -> None:
    command = [sys.executable, "-c", _PROGRAM, str(_GROWTH_BYTES)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert answer.stderr == ""
    verdicts = dict(line.split(": ") for line in answer.stdout.splitlines())
    assert len(verdicts) == 16
    assert verdicts == {name: "read" if name in _READ else "refused" for name in verdicts}
