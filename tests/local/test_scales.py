"""Networks whose layers are of extreme scales: rates neither underflow into 0 nor overflow. And runs that repeat."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.errors import ConfigError
from lirpa_lip.local.bounds import network_graph, prepare
from lirpa_lip.local.layers import centres
from lirpa_lip.local.linearised import StackedMap
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.product import zero_safe_product
from lirpa_lip.local.propagate import propagate
from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.regions.sizes import safe_norm


class Skips(nn.Module):
    """Residual blocks, whose two paths must keep their proportion."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(8))

    def forward(self, x):
        for one, two in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = torch.relu(x + two(torch.relu(one(x))))
        return x


def chain(scales: list[float]) -> nn.Sequential:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for scale in scales:
        layer = nn.Linear(5, 5)
        layer.weight.data.mul_(scale)
        layer.bias.data.zero_()
        layers += [layer, nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers[:-1])


SMALL, BIG = 2.0**-100, 2.0**100
ORDERS = {
    "small first": [SMALL] * 6 + [BIG] * 6,
    "big first": [BIG] * 6 + [SMALL] * 6,
    "in turn": [SMALL, BIG] * 6,
}


def constants(model: nn.Module, x, rows: bool, **options):
    bounded = BoundedModule(model, x, bound_opts={"local_lip": LocalLipConfig(**options)})
    c = torch.eye(5, dtype=x.dtype).expand(len(x), -1, -1) if rows else None
    return bounded.local_lipschitz((BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1)),), c)


@pytest.mark.parametrize(
    ("bound", "rows"), [("auto", False), ("product", False), ("product", True), ("composed", True)]
)
@pytest.mark.parametrize("order", ORDERS)
def test_scales_that_cancel_do_not_matter(order: str, bound: str, rows: bool) -> None:
    """Powers of two before a positively homogeneous activation cancel, whatever the order: the same constant."""
    # float32 does not hold the values behind large layers, and the network itself would be undefined
    dtype = torch.float64 if order == "big first" else torch.float32
    x = torch.rand(2, 5, dtype=dtype)
    options = {"bound": bound, "certificate": "deterministic", "seed": 3}
    plain = constants(chain([1.0] * 12).to(dtype), x, rows, **options)
    found = constants(chain(ORDERS[order]).to(dtype), x, rows, **options)
    assert (plain.lower > 0).all()
    torch.testing.assert_close(found.upper, plain.upper, rtol=1e-3, atol=0)
    # float32 itself underflows on the way, and so do points of the region: from below less may be found
    assert (found.lower <= plain.upper).all() and (found.lower >= 0).all()


@pytest.mark.parametrize("certificate", ["deterministic", "probabilistic"])
def test_the_rate_of_six_small_and_six_large_layers(certificate: str) -> None:
    """Float32 weights near 1e-30 and 1e30, defaults otherwise: never below what is attained in float64."""
    model = chain([1e-30] * 6 + [1e30] * 6)
    x = torch.rand(1, 5)
    result = constants(model, x, False, certificate=certificate)
    jacobian = torch.autograd.functional.jacobian(model.double(), x.double()).reshape(5, 5)
    attained = torch.linalg.matrix_norm(jacobian, 2).item()
    assert attained > 1e-12
    assert attained <= result.upper.item() <= 1e3 * attained


def test_only_small_layers() -> None:
    """The constant is below float32's least number: the bound is not."""
    result = constants(chain([1e-30] * 12), torch.rand(1, 5), False)
    assert 0 < result.upper.item() < 1e-44 and result.lower.item() == 0


@pytest.mark.parametrize("power", [-200, 200, -450])
def test_stacked_maps_are_balanced(power: int) -> None:
    """The same map but for a power of two, with residuals; its support knows where nothing comes through."""
    torch.manual_seed(0)
    model, x = Skips(), torch.rand(2, 5)
    bounded = BoundedModule(model, x)
    config = LocalLipConfig(bound="composed")
    graph, region, _ = prepare(bounded, (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.5)),), config)
    layers = propagate(graph, region, config, NormBudget(config, 100))
    scales = {graph.input: torch.rand(2, 5, dtype=torch.float64)}
    scales |= {name: torch.rand_like(layer.anchor) for name, layer in layers.items()}
    out_scale = torch.rand(2, 5, dtype=torch.float64)
    plain = StackedMap(network_graph(bounded).to(torch.float64), graph.output, centres(layers), scales, out_scale)
    balanced, exponent = plain.balanced()
    torch.testing.assert_close(balanced.dense() * 2.0 ** exponent.item(), plain.dense(), rtol=1e-12, atol=0)
    moved = {name: scale * 2.0**power for name, scale in scales.items()}
    map_ = StackedMap(plain.graph, plain.target, plain.slopes, moved, out_scale * 2.0**power)
    reference = masked_spectral_norm(plain, certificate="deterministic").upper
    for certificate in ("deterministic", "probabilistic"):
        upper = masked_spectral_norm(map_, certificate=certificate).upper
        torch.testing.assert_close(upper, reference * 2.0**power * 2.0**power, rtol=1e-2, atol=0)
    support = plain.support()
    assert support is not None and ((support.dense() > 0) >= (plain.dense() != 0)).all()
    nothing = StackedMap(plain.graph, plain.target, plain.slopes, {n: 0 * s for n, s in scales.items()}, out_scale)
    assert (masked_spectral_norm(nothing).upper == 0).all()


def test_products_and_norms_of_any_scale() -> None:
    tiny = torch.tensor([1e-200, 0.0, 0.0, 1e-200, 2.0], dtype=torch.float64)
    rate = torch.tensor([1e-200, torch.inf, 1.0, 0.0, 3.0], dtype=torch.float64)
    product = zero_safe_product(tiny, rate)
    assert product[0] > 0 and product[1:].tolist() == [0.0, 0.0, 0.0, 6.0]
    for dtype, scales in ((torch.float32, (1e-30, 1e30)), (torch.float64, (1e-200, 5e-324, 1e200))):
        for scale in scales:
            x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [scale, 0.0]], dtype=dtype)
            x[0] *= scale
            x.requires_grad_()
            norm = safe_norm(x)
            expected = torch.tensor([5.0 * scale, 0.0, scale], dtype=dtype)
            torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
            if scale == 5e-324:
                continue  # a gradient passes through products with it, which are rounded to multiples of it
            (gradient,) = torch.autograd.grad(norm[0], x)
            torch.testing.assert_close(gradient[0], torch.tensor([0.6, 0.8], dtype=dtype), rtol=1e-6, atol=0)
            assert (gradient[1:] == 0).all()


@pytest.mark.parametrize("method", ["local-lip", "sdp-crown"])
def test_a_run_is_repeated_by_its_seed(method: str) -> None:
    torch.manual_seed(0)
    model, x = chain([1.0] * 4), torch.rand(2, 5)
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.3)),)
    options = {"certificate": "probabilistic", "norm_iterations": 2}

    def run(**more):
        bounded = BoundedModule(model, x, bound_opts={"local_lip": LocalLipConfig(**options, **more)})
        bounds = bounded.compute_bounds(x=ball, method=method)
        return bounded.last_seed, bounds, bounded.local_lipschitz(ball)

    torch.manual_seed(0)
    seed, bounds, result = run()
    torch.manual_seed(0)
    other, _, different = run()
    assert seed != other != result.details["seed"]
    assert not torch.equal(result.upper, different.upper)
    _, again, _ = run(seed=seed)
    assert torch.equal(again[0], bounds[0]) and torch.equal(again[1], bounds[1])
    _, _, same = run(seed=result.details["seed"])
    assert torch.equal(same.upper, result.upper) and torch.equal(same.lower, result.lower)
    with pytest.raises(ConfigError, match="seed"):
        LocalLipConfig(seed=-1)
