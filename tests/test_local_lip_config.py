"""Settings: validated where they are made, found where auto_LiRPA carries them."""

from __future__ import annotations

import dataclasses

import pytest

from lirpa_lip import LocalLipConfig
from lirpa_lip.errors import ConfigError, UnknownMethodError


def test_optimize_as_a_switch():
    assert LocalLipConfig(optimize=True).optimize == 30 and LocalLipConfig(optimize=False).optimize == 0


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LocalLipConfig().delta = 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        dict(bound="tightest"),
        dict(certificate="sure"),
        dict(precision="bfloat16"),
        dict(delta=0.0),
        dict(delta=1.0),
        dict(delta=float("nan")),
        dict(norm_iterations=0),
        dict(norm_tolerance=0.0),
        dict(norm_tolerance=1.0),
        dict(norm_tolerance=float("nan")),
        dict(tighten=-2),
        dict(optimize=-1),
        dict(image_box=(1.0, 0.0)),
        dict(image_box=(0.0, float("inf"))),
    ],
)
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ConfigError):
        LocalLipConfig(**wrong)


def test_unknown_names_list_the_choices():
    with pytest.raises(UnknownMethodError, match="'product'"):
        LocalLipConfig(bound="tightest")
    with pytest.raises(UnknownMethodError, match="image_box"):
        LocalLipConfig.from_options({"local_lip": {"pixel_box": (0, 1)}})


def test_found_in_bound_opts():
    assert LocalLipConfig.from_options(None) == LocalLipConfig()
    assert LocalLipConfig.from_options({"conv_mode": "matrix"}) == LocalLipConfig()
    assert LocalLipConfig.from_options({"local_lip": {"delta": 0.1}}).delta == 0.1
    with pytest.raises(ConfigError):
        LocalLipConfig.from_options({"local_lip": 3})
