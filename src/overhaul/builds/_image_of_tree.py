"""Makes the image of a tree inside the sandbox, where the owners of its files are the right ones.

`python -m overhaul.builds._image_of_tree TREE IMAGE NAME TIMESTAMP SIZE_BYTES` (size 0: what it needs).
"""

import sys
from pathlib import Path

from overhaul.content.image import ImageShape, build_image
from overhaul.errors import OverhaulError
from overhaul.progress import Silence


def main(arguments: list[str]) -> None:
    """Build the image that the arguments ask for."""
    tree, image, name, timestamp, size = arguments
    shape = ImageShape(name=name, timestamp=int(timestamp), size_bytes=int(size) or None)
    try:
        build_image(Path(tree), Path(image), shape=shape, progress=Silence())
    except OverhaulError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
