import math

import auto_LiRPA
import pytest
import torch
from auto_LiRPA import BoundedTensor
from auto_LiRPA.patches import Patches
from auto_LiRPA.utils import eyeC
from torch import nn

from lirpa_lip.autolirpa.perturbation import PerturbationLpNorm
from lirpa_lip.errors import ConfigError, NonFiniteError, ShapeError


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


def bounds(model, x, perturbation, method):
    bounded = auto_LiRPA.BoundedModule(model, torch.empty_like(x), bound_opts={"conv_mode": "matrix"})
    return bounded.compute_bounds(x=(BoundedTensor(x, perturbation),), method=method)


@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN", "forward"])
@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_one_number_is_auto_lirpas_class(norm, method):
    model, x = network(), torch.rand(2, 1, 4, 4)
    for eps in (0.1, torch.tensor(0.1)):
        ours = bounds(model, x, PerturbationLpNorm(norm=norm, eps=eps), method)
        theirs = bounds(model, x, auto_LiRPA.PerturbationLpNorm(norm=norm, eps=0.1), method)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", ["CROWN-IBP", "CROWN", "forward"])
def test_radius_per_sample_in_the_box_norm(method):
    """Samples without neighbours: a batch of different radii gives what each gives alone."""
    model, x, eps = network(), torch.rand(3, 1, 4, 4), torch.tensor([0.0, 0.05, 0.3])
    lower, upper = bounds(model, x, PerturbationLpNorm(norm=math.inf, eps=eps), method)
    for i in range(3):
        alone = bounds(model, x[i : i + 1], PerturbationLpNorm(norm=math.inf, eps=eps[i].item()), method)
        torch.testing.assert_close((lower[i], upper[i]), (alone[0][0], alone[1][0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [1.0, 2.0, math.inf])
def test_every_form_of_the_identity_gives_the_box(norm):
    x, eps = torch.rand(3, 2, 4, 4), torch.tensor([0.0, 0.5, 1.0])
    perturbation = PerturbationLpNorm(norm=norm, eps=eps)
    matrices = {
        "eyeC": eyeC((3, 32, 2, 4, 4), x.device),
        "matrix": torch.eye(32).expand(3, 32, 32),
        "patches": Patches(identity=1, shape=[2, 3, 4, 4, 2, 1, 1]),
    }
    for name, A in matrices.items():
        for sign in (-1, 1):
            bound = perturbation.concretize(x, A, sign=sign).reshape(3, -1)
            expected = (x + sign * eps.view(3, 1, 1, 1)).reshape(3, -1)
            torch.testing.assert_close(bound, expected, msg=lambda text, name=name: f"{name}: {text}")
    assert perturbation.eps is eps


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"eps": -0.1}, ConfigError, "negative"),
        ({"eps": torch.tensor([0.1, -1.0])}, ConfigError, "negative"),
        ({"eps": math.nan}, NonFiniteError, "eps"),
        ({"eps": torch.tensor([0.1, math.inf])}, NonFiniteError, "eps"),
        ({"eps": torch.zeros(2, 1)}, ShapeError, r"\(2, 1\)"),
        ({"eps": 0.1, "norm": 0.5}, ConfigError, "norm=0.5"),
        ({"eps": 0.1, "norm": math.nan}, ConfigError, "norm=nan"),
        ({"eps": 0.1, "norm": "2"}, ConfigError, "norm='2'"),
        ({"eps": "0.1"}, ConfigError, "eps='0.1'"),
        ({"eps": 0.1, "x_L": [0.0]}, ConfigError, "x_L is a list"),
        ({"eps": 0.1, "x_L": 1.0, "x_U": 0.0}, ConfigError, "x_L exceeds x_U"),
        ({"eps": 0.1, "x_L": torch.tensor(math.nan)}, NonFiniteError, "x_L"),
        ({"eps": 0.1, "x_L": torch.ones(2), "x_U": torch.zeros(2)}, ConfigError, "x_L exceeds x_U"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        PerturbationLpNorm(**{"norm": 2, **arguments})


@pytest.mark.parametrize("method", ["IBP", "CROWN"])
def test_ends_of_a_box_may_be_numbers(method):
    model, x = network(), torch.rand(2, 1, 4, 4)
    number = PerturbationLpNorm(norm=math.inf, x_L=0.0, x_U=0.7)
    tensor = PerturbationLpNorm(norm=math.inf, x_L=torch.zeros_like(x), x_U=torch.full_like(x, 0.7))
    torch.testing.assert_close(bounds(model, x, number, method), bounds(model, x, tensor, method), rtol=1e-5, atol=1e-5)


def test_set_eps_is_checked():
    perturbation = PerturbationLpNorm(eps=0.1, norm=2)
    with pytest.raises(ConfigError, match="negative"):
        perturbation.set_eps(-1.0)
    perturbation.set_eps(0.2)
    assert perturbation.eps == 0.2


@pytest.mark.parametrize("method", ["CROWN", "forward"])
def test_wrong_number_of_radii(method):
    model, x = network(), torch.rand(3, 1, 4, 4)
    with pytest.raises(ShapeError, match="2 entries for a batch of 3"):
        bounds(model, x, PerturbationLpNorm(norm=2, eps=torch.tensor([0.1, 0.2])), method)


def test_input_that_is_not_finite():
    x = torch.rand(2, 1, 4, 4)
    x[1, 0, 2, 2] = math.nan
    with pytest.raises(NonFiniteError, match="the input"):
        bounds(network(), x, PerturbationLpNorm(norm=2, eps=0.1), "CROWN")
