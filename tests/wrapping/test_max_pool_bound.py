"""Max pooling in auto_LiRPA's methods: sound for every window, and never looser than auto_LiRPA's own rule."""

from __future__ import annotations

import time

import auto_LiRPA
import pytest
import torch
from auto_LiRPA import BoundedTensor
from sampling import assert_sound
from torch import nn

from lirpa_lip import BoundedModule, PerturbationLpNorm
from lirpa_lip.wrapping.max_pool_bound import BoundMaxPool

INF = torch.inf


def network(size: int, pool: nn.Module, padding: int = 1, stride: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3, padding=padding), nn.ReLU(), pool, nn.Conv2d(4, 4, 2, stride, padding), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    model(torch.zeros(1, 1, size, size))
    return model


def bounds(model, x, eps, method="crown", norm=INF, **options):
    bounded = BoundedModule(model, x, **options)
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=eps)),)
    return [t.detach() for t in bounded.compute_bounds(x=ball, method=method)]


def box_sound(model, x, eps, lower, upper, tol=1e-5):
    """Corners of the box, random and attacked ones."""
    points = [x + eps * torch.randn_like(x).sign() for _ in range(50)]
    for sign in (1, -1):
        for output in range(lower.shape[1]):
            point = x.clone()
            for _ in range(3):
                point.requires_grad_()
                (gradient,) = torch.autograd.grad(sign * model(point)[:, output].sum(), point)
                point = x + eps * gradient.sign()
                points.append(point)
    with torch.no_grad():
        values = torch.stack([model(p) for p in points])
    assert (lower <= values.amin(0) + tol).all() and (upper >= values.amax(0) - tol).all()


THEIRS = {"custom_ops": {"onnx::MaxPool": auto_LiRPA.bound_ops.BoundMaxPool}}


@pytest.mark.parametrize("eps", [0.003, 0.03, 0.1, 0.3])
@pytest.mark.parametrize(("size", "kernel", "padding", "stride"), [(8, 2, 1, 1), (9, 2, 0, 2), (10, 3, 1, 2)])
def test_never_looser_than_auto_lirpas_rule(size, kernel, padding, stride, eps):
    """Output by output, though CROWN is not monotone in the pre-activation bounds (chords all over would fail here)."""
    for seed in range(4):
        model = network(size, nn.MaxPool2d(kernel), padding, stride, seed)
        x = torch.rand(3, 1, size, size)
        assert BoundedModule(model, x).conv_mode == "patches"
        ours, theirs = bounds(model, x, eps), bounds(model, x, eps, **THEIRS)
        scale = 1e-6 * (1 + (theirs[1] - theirs[0]).abs())
        assert (ours[0] >= theirs[0] - scale).all() and (ours[1] <= theirs[1] + scale).all()
        box_sound(model, x, eps, *ours)


def test_narrower_and_about_as_fast():
    model = network(16, nn.MaxPool2d(2))
    x = torch.rand(4, 1, 16, 16)
    found, seconds = {}, {}
    for name, options in (("theirs", THEIRS), ("ours", {})):
        bounded = BoundedModule(model, x, **options)
        ball = (BoundedTensor(x, PerturbationLpNorm(norm=INF, eps=0.05)),)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            found[name] = bounded.compute_bounds(x=ball, method="crown")
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
    width = {name: float((upper - lower).mean()) for name, (lower, upper) in found.items()}
    assert width["ours"] < 0.97 * width["theirs"]
    assert seconds["ours"] < 1.5 * seconds["theirs"], seconds  # 1.0 on a quiet machine


WINDOWS = {
    "padded": nn.MaxPool2d(2, padding=1),
    "padded 3": nn.MaxPool2d(3, padding=1),
    "overlapping": nn.MaxPool2d(3, stride=2, padding=1),
    "apart": nn.MaxPool2d(2, stride=3),
    "dilated": nn.MaxPool2d(2, stride=2, dilation=2),
    "ceil": nn.MaxPool2d(2, ceil_mode=True),
    "oblong": nn.MaxPool2d((2, 3)),
    "oblong padding": nn.MaxPool2d((2, 2), padding=(1, 0)),
    "plain": nn.MaxPool2d(2),
    "leftover": nn.MaxPool2d(3),
}


@pytest.mark.parametrize("method", ["crown", "forward", "forward+backward", "crown-ibp", "ibp", "crown-optimized"])
@pytest.mark.parametrize("window", WINDOWS)
def test_every_window_is_sound(window, method):
    model = network(9, WINDOWS[window], padding=0)
    x = torch.rand(2, 1, 9, 9)
    options = {"bound_opts": {"optimize_bound_args": {"iteration": 3}}}
    box_sound(model, x, 0.1, *bounds(model, x, 0.1, method, **options))
    lower, upper = bounds(model, x, 0.3, method, 2, **options)
    assert_sound(model, x, 0.3, torch.eye(3).expand(2, -1, -1), lower, upper, count=20)


@pytest.mark.parametrize("method", ["crown", "crown-optimized"])
@pytest.mark.parametrize("window", ["padded", "padded 3", "plain", "leftover"])
def test_patches_and_matrices_give_the_same(window, method):
    for size, stride in ((9, 1), (11, 2)):
        model, x = network(size, WINDOWS[window], stride=stride), torch.rand(2, 1, size, size)
        found = []
        for mode in ("patches", "matrix"):
            options = {"conv_mode": mode, "optimize_bound_args": {"iteration": 1}}
            assert BoundedModule(model, x, dict(options)).conv_mode == mode
            found.append(bounds(model, x, 0.1, method, bound_opts=options))
        for patches, matrix in zip(*found, strict=True):
            torch.testing.assert_close(patches, matrix, rtol=1e-4, atol=1e-5)


def test_optimising_never_loosens_and_does_not_fall_behind_theirs():
    options = {"optimize_bound_args": {"iteration": 10}, "conv_mode": "matrix"}  # theirs fails in patches
    options |= {"sparse_spec_alpha": False, "sparse_features_alpha": False}
    for seed in range(3):
        model, x = network(8, nn.MaxPool2d(2), seed=seed), torch.rand(2, 1, 8, 8)
        plain = bounds(model, x, 0.1)
        ours = bounds(model, x, 0.1, "crown-optimized", bound_opts=dict(options))
        assert (ours[0] >= plain[0] - 1e-5).all() and (ours[1] <= plain[1] + 1e-5).all()
        if auto_LiRPA.__version__ != "0.3":  # where theirs fails
            theirs = bounds(model, x, 0.1, "crown-optimized", bound_opts=dict(options), **THEIRS)
            assert (ours[1] - ours[0]).mean() < (theirs[1] - theirs[0]).mean()
        box_sound(model, x, 0.1, *ours)


def node(x: torch.Tensor, kernel=(2, 2)) -> BoundMaxPool:
    return next(n for n in BoundedModule(nn.MaxPool2d(kernel), x)._modules.values() if isinstance(n, BoundMaxPool))


def test_lines_enclose_the_maximum():
    """On random boxes, points among them, of windows with ties, and infinite ends."""
    low = torch.randn(200, 1, 2, 2)
    high = low + torch.rand(200, 1, 2, 2) * (torch.rand(200, 1, 2, 2) > 0.3)
    high[:20], low[:20] = high[:20].amax((2, 3), keepdim=True), low[:20].amin((2, 3), keepdim=True)
    low[20:30, 0, 0, 0], high[30:40, 0, 1, 1] = -INF, INF
    first, second, slope, most = node(torch.zeros(200, 1, 2, 2))._lines(low, high)
    assert ((slope >= 0) & (slope <= 1)).all() and not torch.isnan(most).any()
    ends = low.nan_to_num(neginf=-9), high.nan_to_num(posinf=9)
    for _ in range(200):
        z = torch.lerp(*ends, torch.rand(200, 1, 2, 2).mul(2).sub(0.5).clamp(0, 1))
        flat = z.flatten(2)
        below = flat.gather(2, first.flatten(2))
        above = slope.flatten(2) * (flat.gather(2, second.flatten(2)) - most.flatten(2)) + most.flatten(2)
        above = torch.where(slope.flatten(2) == 0, most.flatten(2), above)
        value = flat.amax(2, keepdim=True)
        assert (below <= value).all() and (above >= value - 1e-6).all()


def test_known_order_is_exact():
    x = torch.tensor([[[[0.0, 5.0], [1.0, 2.0]]]])
    lower, upper = bounds(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), x, 0.5)
    assert lower.item() == 4.5 and upper.item() == 5.5
