"""The sizes that are told are the sizes that are there."""

from pathlib import Path

from tests.unit.publishing.building import make_repository, publish_image, random_bytes, write_image

from overhaul.repository.layout import files_of
from overhaul.repository.stats import measure


def test_every_public_file_is_counted_once(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repo")
    image = write_image(tmp_path / "image", random_bytes(1))
    done = publish_image(repository, image, "1.0")
    publish_image(repository, image, "1.1")
    stats = measure(repository.storage, repository.published())
    public = list(repository.storage.list_objects("public/"))

    assert stats.files == len(public)
    assert stats.bytes == sum(one.size for one in public)
    assert {kind.kind for kind in stats.kinds} == {
        "content/frames",
        "content/indexes",
        "content/mends",
        "content/packs",
        "metadata",
        "targets",
    }
    [product] = stats.products
    assert (product.product, product.releases, product.channels) == ("kiosk", 2, ("stable",))
    assert product.image_bytes == 2 * image.stat().st_size
    assert product.stored_bytes == sum(ref.size for ref in files_of(done.release))
