"""Adding a product to a repository that devices follow."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.crash.killing import run_killed_at
from tests.hostile import signed_files
from tests.published import PublishedRepository
from tests.signed_tree import Device, MemoryFetcher

from overhaul.cli import repository as repository_cli
from overhaul.errors import OverhaulError
from overhaul.publishing.keys import OfflineSignaturesError, import_signatures, request_signatures
from overhaul.publishing.products import OtherChannelsError, add_product
from overhaul.publishing.settings import UnusableSettingsError
from overhaul.release.names import UnusableNameError
from overhaul.trust.editor import ProductExistsError
from overhaul.trust.keyring import Keyring
from overhaul.trust.roles import ReservedNameError


@pytest.fixture
def made(tmp_path: Path) -> PublishedRepository:
    return PublishedRepository(tmp_path / "repository")


def _reads(made: PublishedRepository, state: Path, path: str) -> bytes:
    files = signed_files(made.public)
    device = Device(state, "memory:", (made.directory / "root.json").read_bytes(), MemoryFetcher(files))
    device.clock.moment = made.repository.now()
    repository = device.repository()
    repository.refresh()
    return repository.read_target(path)


def test_an_added_product_is_published_like_the_first(made: PublishedRepository, tmp_path: Path) -> None:
    made.publish("1.0", "b1", image_size=70_000)
    _reads(made, tmp_path / "state", "alpha/policy/stable.json")
    arguments = ["add-product", "kiosk", "-c", "stable", "-c", "beta", "--repository", str(made.directory)]

    answer = CliRunner().invoke(repository_cli.command, arguments)

    assert answer.exit_code == 0, answer.exception
    assert made.repository.settings.product("kiosk").channels == ("stable", "beta")
    made.publish("2.0", "b2", product="kiosk", image_size=70_000)
    assert _reads(made, tmp_path / "state", "kiosk/policy/stable.json")
    assert made.repository.published().report.findings == ()
    with pytest.raises(ProductExistsError):
        add_product(made.repository, "kiosk")


def test_a_product_is_added_by_keys_that_are_elsewhere(made: PublishedRepository) -> None:
    safe = made.directory.with_name("safe")
    shutil.copytree(made.repository.keys_directory, safe)
    for path in made.repository.keys_directory.glob("targets-*.pem"):
        path.unlink()
    with pytest.raises(OfflineSignaturesError):
        add_product(made.repository, "kiosk")
    request = request_signatures(made.repository)
    assert [one.role for one in request.roles] == ["targets"]
    assert "kiosk: 1 of 1 keys must sign (new role)" in "\n".join(request.roles[0].describe())
    offline = Keyring.open(safe)
    held = offline.held(request.keyids)
    signed = request.signed_with(
        lambda keyid: offline.signers("", keyids=[keyid], threshold=1)[0] if keyid in held else None
    )

    import_signatures(made.repository, signed)

    made.publish("1.0", "b1", product="kiosk", image_size=70_000)
    assert made.repository.published().report.findings == ()


@pytest.mark.parametrize(
    ("product", "channels", "error"),
    [
        ("No Name", None, UnusableNameError),
        ("targets", None, ReservedNameError),
        ("x-policy", None, ReservedNameError),
        ("alpha", None, ProductExistsError),
        ("kiosk", ("a", "a"), OverhaulError),
        ("kiosk", ("No Channel",), OverhaulError),
    ],
)
def test_a_product_that_cannot_be_added_changes_nothing(
    made: PublishedRepository, product: str, channels: tuple[str, ...] | None, error: type[OverhaulError]
) -> None:
    before = signed_files(made.public), (made.directory / "overhaul.toml").read_bytes()

    with pytest.raises(error) as caught:
        add_product(made.repository, product, channels=channels)

    assert caught.value.exit_code == 3
    assert (signed_files(made.public), (made.directory / "overhaul.toml").read_bytes()) == before


def test_a_configuration_that_takes_no_more_tables_is_left_alone(made: PublishedRepository) -> None:
    path = made.directory / "overhaul.toml"
    text = path.read_text()
    path.write_text("products = { alpha = {} }\n" + text[: text.index("[products.")])
    before = path.read_bytes()

    with pytest.raises(UnusableSettingsError, match="by hand"):
        add_product(made.repository, "kiosk")

    assert path.read_bytes() == before


def test_an_addition_killed_anywhere_is_finished_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    first = PublishedRepository(tmp_path / "first/repository")
    point, passed = 0, None
    while passed is None:
        shutil.rmtree(tmp_path / "try", ignore_errors=True)
        shutil.copytree(tmp_path / "first", tmp_path / "try")
        made = PublishedRepository.__new__(PublishedRepository)
        made.__dict__ = {**first.__dict__, "directory": tmp_path / "try/repository"}
        made.public = made.directory / "store/public"

        def add(made: PublishedRepository = made) -> None:
            add_product(made.repository, "kiosk", channels=("stable",))

        passed = run_killed_at(add, point)
        assert made.repository.published().report.findings == ()
        made.now += 3600
        if "kiosk" not in {status.partition("-")[0] for status in made.repository.published().report.roles}:
            if "kiosk" in made.repository.settings.products:
                with pytest.raises(OtherChannelsError):
                    add_product(made.repository, "kiosk", channels=("other",))
            add()
        assert made.repository.settings.product("kiosk").channels == ("stable",)
        assert made.repository.published().report.findings == ()
        point += 1
    assert passed > 20
