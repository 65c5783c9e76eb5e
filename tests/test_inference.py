"""``inference=``: bounds that hold for the network as it runs, in any order of summation."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.errors import NonFiniteError, UnknownMethodError
from lirpa_lip.margin import margin_specification

WIDTHS = [48, 64, 32, 2]


def network(seed: int, activation=nn.ReLU) -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(WIDTHS):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False).eval(), torch.randn(1, WIDTHS[0])


def with_margin(net: nn.Sequential, x: torch.Tensor, margin: float) -> nn.Sequential:
    """The last bias such that class 0 leads by as little above ``margin`` as float32 can say."""
    exact = nn.Sequential(*(type(m)(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in net))
    exact.load_state_dict(net.state_dict())
    value = exact.double().requires_grad_(False)(x.double())[0]
    last = net[-1]
    bias = last.bias.data[0].double() - (value[0] - value[1]) + margin
    last.bias.data[0] = torch.nextafter(bias.float(), torch.tensor(torch.inf))
    return net


def permuted(net: nn.Sequential, x: torch.Tensor, generator: torch.Generator) -> tuple[nn.Sequential, torch.Tensor]:
    """The same network with its neurons and inputs in another order: equal in real arithmetic."""
    linear = [m for m in net if isinstance(m, nn.Linear)]
    order = torch.randperm(x.shape[1], generator=generator)
    moved_x, layers = x[:, order], []
    for m in net:
        if not isinstance(m, nn.Linear):
            layers.append(m)
            continue
        rows = torch.arange(m.out_features)
        if m is not linear[-1]:
            rows = torch.randperm(m.out_features, generator=generator)
        copy = nn.Linear(m.in_features, m.out_features).requires_grad_(False)
        copy.weight.data, copy.bias.data = m.weight[rows][:, order].contiguous(), m.bias[rows].contiguous()
        layers.append(copy)
        order = rows
    return nn.Sequential(*layers), moved_x


def flips(net: nn.Sequential, x: torch.Tensor, dtype: torch.dtype, tries: int = 60) -> int:
    generator = torch.Generator().manual_seed(0)
    found = 0
    for _ in range(tries):
        other, moved = permuted(net, x, generator)
        out = other.to(dtype)(moved.to(dtype))[0]
        found += bool(out[0] <= out[1])
    return found


def margin_of(net: nn.Sequential, x: torch.Tensor, eps: float = 0.0, method: str = "local-lip", **settings) -> float:
    bounded = BoundedModule(net, torch.zeros_like(x), bound_opts={"local_lip": LocalLipConfig(**settings)})
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)
    rows = margin_specification(torch.zeros(len(x), dtype=torch.long), 2)
    return bounded.compute_bounds(x=ball, C=rows, method=method, bound_upper=False)[0].min().item()


def test_flips_exist_and_the_option_sees_them():
    """A network certified in real arithmetic changes its mind with the order of its neurons; never with the option."""
    flipped = 0
    for seed in range(6):
        net, x = network(seed)
        net = with_margin(net, x, 1e-9)
        certified, as_run = margin_of(net, x), margin_of(net, x, inference="float32")
        assert as_run < certified
        count = flips(net, x, torch.float32)
        flipped += certified > 0 and count > 0
        assert not (as_run > 0 and count > 0)
    assert flipped > 0


@pytest.mark.parametrize("inference", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_no_flip_of_what_is_certified(inference, activation):
    """The least margin that the option certifies, for several networks: no order of summation loses it."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[inference]
    for seed in range(3):
        net, x = network(seed, activation)
        margin = torch.finfo(dtype).eps / 16
        while margin_of(with_margin(net, x, margin), x, inference=inference) <= 0:
            margin *= 4
            assert margin < 1e3
        assert flips(net, x, dtype, 30) == 0
        # and the bound is of use: within some thousand units of what the precision resolves
        assert margin < 1e4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", ["local-lip", "sdp-crown", "local-lip-crown"])
def test_bounds_hold_for_values_as_run(method):
    net, x = network(3)
    wide = BoundedModule(net, x, bound_opts={"local_lip": LocalLipConfig(inference="bfloat16")})
    exact = BoundedModule(net, x)
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.05)),)
    lower, upper = wide.compute_bounds(x=ball, method=method)
    real = exact.compute_bounds(x=ball, method=method)
    assert (lower < real[0]).all() and (upper > real[1]).all()
    half = nn.Sequential(*net)
    torch.manual_seed(0)
    for _ in range(20):
        step = torch.randn_like(x)
        out = half.bfloat16()((x + 0.05 * step / step.norm() * 0.999).bfloat16()).float()
        assert ((lower <= out) & (out <= upper)).all()
    net.float()


def test_values_that_may_overflow_certify_nothing():
    net, x = network(0)
    for layer in net[0], net[2]:
        layer.weight.data *= 1e18
    assert bool(torch.isfinite(net(x)).all()) and margin_of(net, x, eps=1e3, inference="float32") == -torch.inf
    net[2].weight.data *= 1e10
    with pytest.raises(NonFiniteError, match="own output"):
        margin_of(net, x, inference="float32")


def test_unknown_precisions_are_refused():
    with pytest.raises(UnknownMethodError, match="inference"):
        LocalLipConfig(inference="float16")
