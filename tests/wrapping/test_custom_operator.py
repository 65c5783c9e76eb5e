"""The example of docs/extending.md runs, and its bounds hold what it samples."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from auto_LiRPA import bound_op_map

from lirpa_lip.errors import ConfigError
from lirpa_lip.network.adapters.table import ADAPTERS
from lirpa_lip.wrapping.registration import register_operator

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "custom_operator.py"


@pytest.fixture
def example():
    yield runpy.run_path(str(EXAMPLE))
    ADAPTERS.pop("BoundSquareplus", None)
    bound_op_map.bound_op_map.pop("example::Squareplus", None)


def test_custom_operator(example, capsys):
    found = example["main"]()
    printed = capsys.readouterr().out
    assert all(method in printed for method in found)
    lowest, highest = found.pop("sampled")
    for method, (lower, upper) in found.items():
        assert (lower <= lowest + 1e-5).all() and (upper >= highest - 1e-5).all(), method
    width = {method: (upper - lower).mean() for method, (lower, upper) in found.items()}
    assert width["local-lip-crown"] <= width["crown"] + 1e-5
    assert width["local-lip"] < width["ibp"]


def test_a_name_is_taken_once(example):
    register_operator("example::Squareplus", example["ADAPTER"], elementwise=True)  # the same again
    with pytest.raises(ConfigError, match="BoundRelu"):
        register_operator("example::Relu", example["ADAPTER"])
