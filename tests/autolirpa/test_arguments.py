"""Inputs and specifications: one clear error each, by every method alike; inference mode; one-axis inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import ConfigError, NonFiniteError, ShapeError

METHODS = ("ibp", "crown", "crown-ibp", "local-lip", "local-lip-crown", "sdp-crown")
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def ball(x: torch.Tensor, eps: float | torch.Tensor = 0.1, **box: torch.Tensor) -> tuple[BoundedTensor]:
    return (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps, **box)),)


WRONG = {
    "an empty batch": (lambda: {"x": ball(torch.rand(0, 4))}, ShapeError, "empty batch"),
    "float64 input": (lambda: {"x": ball(torch.rand(2, 4, dtype=torch.float64))}, ConfigError, "float64"),
    "no rows": (lambda: {"x": ball(torch.rand(2, 4)), "C": torch.zeros(2, 0, 3)}, ShapeError, "at least one row"),
    "one axis": (lambda: {"x": ball(torch.rand(2, 4)), "C": torch.ones(3)}, ShapeError, "specs"),
    "another batch": (lambda: {"x": ball(torch.rand(2, 4)), "C": torch.ones(5, 1, 3)}, ShapeError, "batch of 2"),
    "a list": (lambda: {"x": ball(torch.rand(2, 4)), "C": [[1.0, 0.0, 0.0]]}, ShapeError, "C is a list"),
    "radii of two": (lambda: {"x": ball(torch.rand(3, 4), torch.tensor([0.1, 0.2]))}, ShapeError, "2 entries"),
    "a box of five": (
        lambda: {"x": ball(torch.rand(3, 4), x_L=torch.zeros(5), x_U=torch.ones(5))},
        ShapeError,
        r"x_L has shape \(5,\)",
    ),
    "integers": (lambda: {"x": ball(torch.ones(2, 4, dtype=torch.int64))}, ConfigError, "int64"),
    "NaN": (lambda: {"x": ball(torch.rand(2, 4)), "C": torch.full((2, 1, 3), torch.nan)}, NonFiniteError, "C"),
}


@EVERY_METHOD
@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name, method):
    arguments, kind, word = WRONG[name]
    bounded = BoundedModule(network(), torch.rand(2, 4))
    with pytest.raises(kind, match=word):
        bounded.compute_bounds(**arguments(), method=method)


@EVERY_METHOD
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_rows_for_all_samples(method, dtype):
    bounded, x = BoundedModule(network(), torch.rand(2, 4)), torch.rand(3, 4)
    rows = torch.tensor([[1, -1, 0], [0, 1, -1]])
    whole = bounded.compute_bounds(x=ball(x), C=rows.float().expand(3, -1, -1), method=method)
    for given in (rows.to(dtype), rows.to(dtype)[None]):
        found = bounded.compute_bounds(x=ball(x), C=given, method=method)
        for bound, expected in zip(found, whole, strict=True):
            torch.testing.assert_close(bound, expected)


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_rows_the_model_cannot_hold(method):
    bounded = BoundedModule(network(), torch.rand(2, 4))
    with pytest.raises(ConfigError, match="float64"):
        bounded.compute_bounds(x=ball(torch.rand(2, 4)), C=torch.full((2, 1, 3), 0.1).double() / 3, method=method)


@EVERY_METHOD
def test_inference_mode(method):
    model = network()
    with torch.inference_mode():
        x = torch.rand(2, 4)
        bounded = BoundedModule(model, x)
        found = bounded.compute_bounds(x=ball(x), C=torch.eye(3).expand(2, -1, -1), method=method)
    again = BoundedModule(model, x.clone()).compute_bounds(x=ball(x.clone()), method=method)
    for bound, expected in zip(found, again, strict=True):
        torch.testing.assert_close(bound.clone(), expected)


def test_parameters_made_in_inference_mode():
    with torch.inference_mode():
        model = network()
    with pytest.raises(ConfigError, match="outside"):
        BoundedModule(model, torch.rand(2, 4))


@pytest.mark.parametrize("method", ["local-lip", "clarke-jacobian"])
def test_lipschitz_constants_in_inference_mode(method):
    model, x = network(), torch.rand(2, 4)
    bounded = BoundedModule(model, x)
    with torch.inference_mode():
        found = bounded.local_lipschitz(x=ball(x), method=method, norm=2)
    assert (found.lower <= found.upper).all()


def test_one_axis_is_no_batch():
    with pytest.raises(ShapeError, match="batch axis"):
        BoundedModule(network(), torch.rand(4))


def test_precisions_that_differ_at_wrapping():
    with pytest.raises(ConfigError, match="float64"):
        BoundedModule(network(), torch.rand(2, 4, dtype=torch.float64))


@pytest.mark.parametrize("x", [torch.rand(2, 7), torch.ones(2, 4, dtype=torch.int64)], ids=["shape", "integers"])
def test_what_the_model_does_not_run_on_says_so(x):
    with pytest.raises(ShapeError, match=r"does not run on the example input .*: RuntimeError: mat1") as error:
        BoundedModule(network(), x)
    assert isinstance(error.value.__cause__, RuntimeError)
