"""The configuration says what it means, and a misspelt key is told by name."""

from datetime import timedelta
from pathlib import Path

import pytest

from overhaul.publishing.settings import Settings, UnusableSettingsError, first_settings, read_settings
from overhaul.repository.opening import StorageAddress
from overhaul.trust.keys import KeyCount


def _written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "overhaul.toml"
    path.write_text(text)
    return path


_LEAST = 'keys = "../keys"\n[storage]\nurl = "store"\n[products.kiosk]\n'


def test_the_first_file_states_the_defaults(tmp_path: Path) -> None:
    text = first_settings(
        products={"kiosk": ("stable", "beta", "dev")},
        storage=StorageAddress(url="store"),
        keys="../keys",
        public_url="",
    )
    assert read_settings(_written(tmp_path, text)) == read_settings(_written(tmp_path, _LEAST))


def test_the_first_file_carries_what_it_was_given(tmp_path: Path) -> None:
    text = first_settings(
        products={"kiosk": ("lts",), "phone.x": ("a", "b")},
        storage=StorageAddress(url='s3://bucket/with "quotes"', endpoint="http://127.0.0.1:1", allow_http=True),
        keys="/media/keys \\ here",
        public_url="https://updates.example.com/",
    )
    settings = read_settings(_written(tmp_path, text))

    assert settings.storage.url == 's3://bucket/with "quotes"'
    assert settings.storage.endpoint == "http://127.0.0.1:1"
    assert settings.storage.allow_http
    assert settings.storage.region is None
    assert settings.keys == "/media/keys \\ here"
    assert settings.public_url == "https://updates.example.com/"
    assert settings.products["kiosk"].channels == ("lts",)
    assert settings.products["phone.x"].channels == ("a", "b")


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ("colour = 1\n", "colour"),
        ("[deltas]\nsuorces = 2\n", "suorces"),
        ("[deltas]\nsources = -1\n", r"deltas\.sources"),
        ("[lifetimes]\ntimestamp = 0\n", r"lifetimes\.timestamp"),
        ("[products.Kiosk]\n", "products"),
        ('[products.phone]\nchannels = ["stable", "stable"]\n', "each once"),
        ("[products.phone]\nchannels = []\n", "at least one"),
        ("not toml at all", "overhaul.toml cannot be used"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, extra: str, named: str) -> None:
    text = extra + _LEAST if extra.startswith("colour") else _LEAST + extra

    with pytest.raises(UnusableSettingsError, match=named):
        read_settings(_written(tmp_path, text))


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UnusableSettingsError, match="overhaul init"):
        read_settings(tmp_path / "overhaul.toml")


def test_lifetimes_and_thresholds_reach_the_signer(tmp_path: Path) -> None:
    text = _LEAST + "keys = { keys = 3, threshold = 2 }\n[lifetimes]\ntimestamp = 0.5\n"
    settings: Settings = read_settings(_written(tmp_path, text))
    plan = settings.key_plan()

    assert settings.lifetimes.as_lifetimes().of("timestamp") == timedelta(hours=12)
    assert plan.of("kiosk") == KeyCount(keys=3, threshold=2)
    assert plan.of("kiosk-policy") == KeyCount(keys=1, threshold=1)
    assert plan.of("root") == KeyCount(keys=3, threshold=2)
