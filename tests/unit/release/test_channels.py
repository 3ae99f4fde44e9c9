"""The channels of a product and the direction of promotion."""

import msgspec
import pytest

from overhaul.release.channels import Channels, UnknownChannelError, UnusableChannelsError, WrongDirectionError
from overhaul.release.names import UnusableNameError

CHANNELS = Channels(("stable", "candidate", "beta"))


def test_a_release_is_promoted_towards_the_more_stable_channel() -> None:
    CHANNELS.check_promotion(source="beta", target="stable")
    for source, target in [("stable", "beta"), ("beta", "beta")]:
        with pytest.raises(WrongDirectionError, match=f"{target} is not more stable than {source}"):
            CHANNELS.check_promotion(source=source, target=target)


def test_a_channel_that_is_not_listed_is_named_together_with_those_that_are() -> None:
    with pytest.raises(UnknownChannelError, match="'nightly'; the product has stable, candidate, beta"):
        CHANNELS.stability("nightly")
    assert "beta" in CHANNELS
    assert "nightly" not in CHANNELS


@pytest.mark.parametrize("names", [(), ("stable", "stable")])
def test_channels_are_at_least_one_name_each_once(names: tuple[str, ...]) -> None:
    with pytest.raises(UnusableChannelsError):
        Channels(names)


def test_a_channel_has_a_usable_name() -> None:
    with pytest.raises(UnusableNameError, match=r"channel '\.\./x'"):
        Channels(("stable", "../x"))


def test_channels_survive_a_configuration_file() -> None:
    assert msgspec.toml.decode(b'names = ["stable", "candidate", "beta"]', type=Channels) == CHANNELS
