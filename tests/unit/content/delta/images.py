"""Small ext4 images made by the real mkfs.ext4 out of real directories."""

import os
import random
import subprocess
from pathlib import Path

from tests.tools import need


def make_image(tree: Path, image: Path, *options: str, size_kib: int = 16 * 1024) -> Path:
    """Write an ext4 image that holds `tree`."""
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": "1700000000"}
    seed = "11111111-2222-3333-4444-555555555555"
    command = [need("mkfs.ext4"), "-q", "-F", "-d", str(tree), "-U", seed, "-E", f"hash_seed={seed}"]
    subprocess.run([*command, *options, str(image), f"{size_kib}k"], env=environment, check=True, capture_output=True)
    return image


def write_tree(tree: Path, files: dict[str, bytes]) -> Path:
    """Write `files`, by relative path, below `tree`."""
    for name, data in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tree


def code_like(chance: random.Random, size: int) -> bytes:
    """Return bytes that compress, in which no long stretch comes twice."""
    words = [chance.randbytes(3) + b"\0" for _ in range(400)]
    return b"".join(chance.choices(words, k=size // 4 + 1))[:size]


def edited(chance: random.Random, data: bytes) -> bytes:
    """Return `data` with bytes changed, taken out, put in and moved."""
    result = bytearray(data)
    for _ in range(chance.randrange(1, 12)):
        place = chance.randrange(len(result) + 1)
        span = chance.choice((1, 4, 300, 5000))
        match chance.randrange(4):
            case 0:
                result[place : place + span] = chance.randbytes(len(result[place : place + span]))
            case 1:
                del result[place : place + span]
            case 2:
                result[place:place] = chance.randbytes(span)
            case _:
                moved = result[place : place + span]
                del result[place : place + span]
                result += moved
    return bytes(result)
