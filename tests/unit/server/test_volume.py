"""What is counted of the bytes sent: only what devices ask for, and never without bound."""

from overhaul.release.record import ReleaseId
from overhaul.server.volume import ReleasesOfFiles, Volume

NOTHING = ReleaseId(product="", variant="", arch="", version="", build_id="")


def test_only_answers_to_devices_count_and_only_good_ones() -> None:
    volume = Volume()
    volume.count(route="content", path="/content/packs/aa/x.pack", status=206, body_bytes=10)
    volume.count(route="content", path="/content/packs/aa/x.pack", status=200, body_bytes=30)
    volume.count(route="content", path="/content/none", status=404, body_bytes=20)
    volume.count(route="poll", path="/metadata/timestamp.json", status=304, body_bytes=0)
    volume.count(route="page", path="/fleet", status=200, body_bytes=9999)
    assert volume.take() == {("content", "/content/packs/aa/x.pack"): [40, 2], ("poll", ""): [0, 1]}
    assert volume.take() == {}


def test_paths_without_end_are_counted_without_their_names() -> None:
    volume = Volume()
    for number in range(30_000):
        volume.count(route="castr", path=f"/castr/{number}", status=200, body_bytes=1)
    counted = volume.take()
    assert len(counted) <= 20_001
    assert sum(size for size, _requests in counted.values()) == 30_000


def test_other_dialects_are_known_by_what_their_paths_say() -> None:
    found = ReleasesOfFiles().by_release(
        {
            ("swupd", "/swupd/tv/shop/amd64/120/pack-os-core-from-0.tar"): [5, 1],
            ("swupd", "/swupd/tv/shop/amd64/version/format1/latest"): [1, 1],
            ("ostree", "/ostree/tv/objects/aa/b.filez"): [7, 1],
            ("content", "/content/packs/aa/unknown.pack"): [9, 2],
            ("poll", ""): [0, 3],
        },
        None,
    )
    tv = ReleaseId(product="tv", variant="", arch="", version="", build_id="")
    assert found == {
        ("swupd", ReleaseId(product="tv", variant="shop", arch="amd64", version="120", build_id="")): [5, 1],
        ("swupd", tv): [1, 1],
        ("ostree", tv): [7, 1],
        ("content", NOTHING): [9, 2],
        ("poll", NOTHING): [0, 3],
    }
