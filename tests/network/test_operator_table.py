"""Every row of the operator table: bounds that no sampled or attacked point violates, and gradients that arrive."""

from __future__ import annotations

import pytest
import torch
from auto_LiRPA.bound_op_map import bound_op_map
from auto_LiRPA.linear_bound import LinearBound
from networks.operators import FLAT, ROWS, Call, Row, mlp, traced
from sampling import assert_sound, ball_points
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.errors import UnsupportedOperatorError
from lirpa_lip.network.adapters.table import ADAPTERS, REFUSED, RELAXED
from lirpa_lip.wrapping.max_pool_bound import BoundMaxPool
from lirpa_lip.wrapping.registration import ATEN, MISSING, operators
from lirpa_lip.wrapping.traced_activation import TracedActivation

EPS = 0.25
EVERY_ROW = pytest.mark.parametrize("name", ROWS)
#: What auto_LiRPA meets by these names in some version only, or for other export settings.
UNTRACED = {"BoundSiLU", "BoundGelu", "BoundHardTanh", "BoundHardSwish", "BoundCast", "BoundDropout", "BoundIdentity",
            "BoundDiv", "BoundSqr", "BoundSoftmax"}  # fmt: skip


def wrapped(name: str, dtype: torch.dtype = torch.float32, **settings):
    model, bounded = traced(name, dtype)
    bounded.bound_opts["local_lip"] = LocalLipConfig(**settings)
    return model, ROWS[name].inputs(2, dtype=dtype), bounded


def ball(x: torch.Tensor, norm: float = 2, eps: float = EPS) -> tuple[BoundedTensor]:
    return (BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=eps)),)


def specification(model, x: torch.Tensor) -> torch.Tensor:
    outputs = model(x).shape[1]
    rows = torch.randn(2, outputs, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(x.dtype)
    return torch.cat([rows, torch.eye(outputs, dtype=x.dtype)]).expand(len(x), -1, -1)


@EVERY_ROW
def test_local_lip_is_sound_and_composed_is_no_looser(name):
    model, x, bounded = wrapped(name)
    c = specification(model, x)
    lower, upper = bounded.compute_bounds(x=ball(x), C=c, method="local-lip")
    assert_sound(model, x, EPS, c, lower, upper, count=20, tol=2e-6)
    _, _, bounded = wrapped(name, bound="product")
    product_lower, product_upper = bounded.compute_bounds(x=ball(x), C=c, method="local-lip")
    assert (lower >= product_lower - 1e-5).all() and (upper <= product_upper + 1e-5).all()


@EVERY_ROW
def test_local_lip_crown_is_sound(name):
    model, x, bounded = wrapped(name)
    c = specification(model, x)
    try:
        lower, upper = bounded.compute_bounds(x=ball(x), C=c, method="local-lip-crown")
    except UnsupportedOperatorError as error:  # a rule auto_LiRPA lacks, and says so
        assert "local-lip" in str(error)
        pytest.skip(str(error))
    assert_sound(model, x, EPS, c, lower, upper, count=20, tol=5e-6)


@EVERY_ROW
@pytest.mark.parametrize("norm", [2, torch.inf])
def test_auto_lirpas_own_methods_are_sound(name, norm):
    model, x, bounded = wrapped(name)
    if norm == 2:
        points = ball_points(x, EPS, 60)
    else:
        points = x + EPS * torch.randn(60, *x.shape).sign()
    with torch.no_grad():
        values = torch.stack([model(p).flatten(1) for p in points])
    for method in ("ibp", "crown") if norm == 2 else ("ibp", "crown-ibp"):
        try:
            lower, upper = bounded.compute_bounds(x=ball(x, norm), method=method)
        except UnsupportedOperatorError as error:
            assert "local-lip" in str(error)
            continue
        slack = 1e-5 * (1 + values.abs().amax(0))
        assert (lower.flatten(1) <= values.amin(0) + slack).all(), method
        assert (upper.flatten(1) >= values.amax(0) - slack).all(), method


@EVERY_ROW
def test_lipschitz_constants_hold(name):
    model, x, bounded = wrapped(name, dtype=torch.float64)
    found = bounded.local_lipschitz(x=ball(x))
    assert (found.lower <= found.upper * (1 + 1e-9)).all()
    points = ball_points(x, EPS, 12)
    with torch.no_grad():
        values = torch.stack([model(p).flatten(1) for p in points])
    for i in range(len(points) - 1):
        distance = (points[i] - points[i + 1]).flatten(1).norm(dim=1)
        moved = (values[i] - values[i + 1]).norm(dim=1)
        assert (moved <= found.upper * distance * (1 + 1e-9) + 1e-12).all()


@EVERY_ROW
def test_gradients_reach_every_parameter(name):
    model, x, bounded = wrapped(name, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    if not parameters:
        pytest.skip("it has no parameters")
    lower, upper = bounded.compute_bounds(x=ball(x), method="local-lip")
    gradients = torch.autograd.grad((upper - lower).sum() + lower.sum(), list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        assert gradient is not None and torch.isfinite(gradient).all(), name
    assert any(g.abs().sum() > 0 for g in gradients)


def test_every_operator_of_the_table_has_a_row():
    found = set()
    for name in ROWS:
        _, bounded = traced(name)
        found |= {type(node).__name__ for node in bounded._modules.values()}
    missing = set(ADAPTERS) - found - UNTRACED
    assert not missing, f"add a row to tests/networks/operators.py for {sorted(missing)}"


def test_table_and_registration_agree():
    assert not set(ADAPTERS) & (set(REFUSED) | set(RELAXED))
    assert {entry.key for entry in MISSING.values()} | set(ATEN.values()) <= set(ADAPTERS) | set(RELAXED)
    before = dict(bound_op_map)
    found = operators({"onnx::Relu": None})
    assert bound_op_map == before and set(MISSING) < set(found) and found["onnx::Relu"] is None


FORWARD = """conv1d|conv transpose 1d|average pool padded|pad|upsample nearest|gather several|hardtanh|leaky relu
|prelu steep and falling|elu|erf|max pool overlapping|max over an axis|min over an axis|maximum with a parameter
""".replace("\n", "").split("|")


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("norm", [2, torch.inf])
def test_forward_bounds_of_our_own_classes(name, norm):
    model, x, bounded = wrapped(name)
    lower, upper = (t.flatten(1) for t in bounded.compute_bounds(x=ball(x, norm), method="forward"))
    points = ball_points(x, EPS, 60) if norm == 2 else x + EPS * torch.randn(60, *x.shape).sign()
    with torch.no_grad():
        values = torch.stack([model(p).flatten(1) for p in points])
    assert (lower <= values.amin(0) + 1e-5).all() and (upper >= values.amax(0) - 1e-5).all()
    ibp = [t.flatten(1) for t in bounded.compute_bounds(x=ball(x, norm), method="ibp")]
    assert (upper - lower).mean() < (ibp[1] - ibp[0]).mean() * 3


def test_forward_bounds_through_a_falling_line():
    """|z| as a PReLU of slope -1, on an input known to lie in [-3, 1] and no more: its lower line falls."""
    layer = nn.PReLU(1)
    nn.init.constant_(layer.weight, -1.0)
    bounded = BoundedModule(nn.Sequential(nn.Linear(1, 1), layer), torch.zeros(1, 1))
    node = next(n for n in bounded._modules.values() if isinstance(n, TracedActivation))
    none, low, high = torch.zeros(1, 1, 1), torch.tensor([[-3.0]]), torch.tensor([[1.0]])
    found = node.bound_forward(1, LinearBound(none, low, none, high, low, high), None)
    assert found.lb.item() <= 0 and found.ub.item() >= 3


@pytest.mark.parametrize("layer", [nn.Hardtanh(-0.3, 0.4), nn.PReLU(8), nn.ELU(), nn.LeakyReLU(0.2)])
def test_alpha_crown_through_activations(layer):
    """They take part in α-CROWN: not looser than CROWN, and sound."""
    row = Row(mlp(layer), FLAT)
    model, x = row.model(), row.inputs(2)
    bounded = BoundedModule(model, x)
    lower, upper = bounded.compute_bounds(x=ball(x), method="crown")
    bounded.set_bound_opts({"optimize_bound_args": {"iteration": 3}})
    found = bounded.compute_bounds(x=ball(x), method="crown-optimized")
    assert (found[0] >= lower - 1e-4).all() and (found[1] <= upper + 1e-4).all()
    c = torch.eye(lower.shape[1]).expand(len(x), -1, -1)
    assert_sound(model, x, EPS, c, *(t.detach() for t in found), count=20, tol=5e-6)
    optimised = [n for n in bounded._modules.values() if isinstance(n, TracedActivation) and n.alpha]
    assert optimised and all(0 <= a.min() and a.max() <= 1 for n in optimised for a in n.alpha.values())


def test_convolutions_keep_their_patches_around_an_activation():
    """A square network with an activation of ours is bounded in patches mode, and as in matrix mode."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ELU(), nn.Conv2d(3, 2, 3), nn.Hardtanh(), nn.Conv2d(2, 2, 2), nn.ReLU()]
    model = nn.Sequential(*layers, Call(lambda x: x.flatten(1)), nn.Linear(18, 3)).eval()
    x = torch.randn(2, 2, 6, 6)
    found = {}
    for mode in ("patches", "matrix"):
        bounded = BoundedModule(model, x, bound_opts={"conv_mode": mode})
        assert bounded.conv_mode == mode
        found[mode] = bounded.compute_bounds(x=ball(x, torch.inf, 0.1), method="crown")
    for patches, matrix in zip(found["patches"], found["matrix"], strict=True):
        torch.testing.assert_close(patches, matrix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 6), (4, 8), (6, 5)])
def test_oblong_images_leave_patches(size):
    """auto_LiRPA's patches are invalid there: its bounds are violated."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.LazyLinear(3)).eval()
    x = torch.randn(2, 2, *size)
    model(x)
    bounded = BoundedModule(model, x)
    assert bounded.conv_mode == "matrix"
    for method in ("crown", "local-lip-crown"):
        lower, upper = bounded.compute_bounds(x=ball(x), method=method)
        assert_sound(model, x, EPS, torch.eye(3).expand(2, -1, -1), lower, upper, count=100)


def test_pooling_windows_that_overlap_or_leave_a_rest():
    kinds = {type(n) for name in ("max pool overlapping", "max pool") for n in wrapped(name)[2]._modules.values()}
    assert BoundMaxPool in kinds and not any(kind.__name__ == "BoundMaxPool" for kind in kinds - {BoundMaxPool})


@pytest.mark.cuda
@EVERY_ROW
def test_on_cuda(name):
    x = ROWS[name].inputs(2).cuda()
    bounded = BoundedModule(ROWS[name].model().cuda(), x, device="cuda")
    lower, upper = bounded.compute_bounds(x=ball(x), method="local-lip")
    expected = BoundedModule(ROWS[name].model(), x.cpu()).compute_bounds(x=ball(x.cpu()), method="local-lip")
    for found, reference in zip((lower, upper), expected, strict=True):
        torch.testing.assert_close(found.cpu(), reference, rtol=1e-4, atol=1e-4)
