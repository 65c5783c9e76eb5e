"""Clipped ReLU and MaxMin in auto_LiRPA's own methods: sound, tight, trainable, on images and on vectors."""

from __future__ import annotations

from types import SimpleNamespace

import auto_LiRPA
import pytest
import torch
from auto_LiRPA import BoundedTensor, PerturbationLpNorm
from torch import nn

from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin
from lirpa_lip.wrapping.clipped_relu_bound import BoundClippedRelu
from lirpa_lip.wrapping.maxmin_bound import BoundClippedMaxMin, BoundMaxMin
from lirpa_lip.wrapping.registration import operators
from lirpa_lip.wrapping.relaxed_bound import RelaxedActivation

INF = float("inf")
METHODS = ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized", "forward", "forward+backward"]
NORMS = {2: 0.5, INF: 0.06}


def convolutional() -> nn.Module:
    """Every layer once, thresholds per channel and per neuron, strides and padding."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), ClippedReLU(4, 0.2), nn.Conv2d(4, 4, 3, padding=1), MaxMin(),
        nn.Conv2d(4, 4, 3, stride=2), ClippedMaxMin((4, 1, 1), 0.05, -0.05), nn.Flatten(), nn.Linear(4, 6),
        ClippedReLU((6,), 0.15), nn.Linear(6, 3),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(36, 12), ClippedReLU(12, 0.3), nn.Linear(12, 12), MaxMin(), nn.Linear(12, 8),
        ClippedMaxMin(8, 0.2, -0.2), nn.Linear(8, 3),
    )  # fmt: skip


def back_to_back() -> nn.Module:
    """Activations that bound each other's outputs, with a ReLU after a layer and a shortcut between."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(64, 3)
            self.clip, self.sort, self.both = ClippedReLU((4, 4, 4), 0.4), MaxMin(), ClippedMaxMin(4, 0.3, -0.3)

        def forward(self, x):
            h = self.sort(self.clip(self.first(x)))
            return self.last(self.both(torch.relu(self.second(h)) + h).flatten(1))

    return Net()


NETWORKS = {f.__name__: f for f in (convolutional, perceptron, back_to_back)}


def build(make, dtype=torch.float32, **options) -> tuple[nn.Module, torch.Tensor, auto_LiRPA.BoundedModule]:
    torch.manual_seed(1)
    model = make().to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))  # so that no two thresholds are equal
    # sparse_spec_alpha: 0.3's α-CROWN fails where a ReLU meets any other activation, its own tanh too.
    options = {"optimize_bound_args": {"iteration": 5}, "sparse_spec_alpha": auto_LiRPA.__version__ != "0.3", **options}
    x = torch.randn(2, 1, 6, 6, dtype=dtype)
    return model.eval(), x, auto_LiRPA.BoundedModule(model, x, bound_opts=options, custom_ops=operators())


def bounds(bounded, x, norm, eps, method, **kwargs):
    ball = BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=eps))
    return bounded.compute_bounds(x=(ball,), method=method, **kwargs)


def extremes(model, x, norm, eps) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest outputs found by sampling and by gradient attacks on each output."""

    def project(step):
        if norm == INF:
            return step.clamp(-eps, eps)
        size = step.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        return step * (eps / size.clamp(min=1e-30)).clamp(max=1)

    found = [model(x + project(10 * eps * torch.randn_like(x))).detach() for _ in range(100)]
    for sign in (1, -1):
        for output in range(found[0].shape[1]):
            step = project(eps * torch.randn_like(x))
            for _ in range(15):
                step.requires_grad_()
                (g,) = torch.autograd.grad(sign * model(x + step)[:, output].sum(), step)
                direction = g.sign() if norm == INF else g / g.flatten(1).norm(dim=1).clamp(min=1e-9).view(-1, 1, 1, 1)
                step = project(step.detach() + 0.4 * eps * direction)
                found.append(model(x + step).detach())
    stacked = torch.stack(found)
    return stacked.amin(0), stacked.amax(0)


@pytest.mark.parametrize("mode", ["patches", "matrix"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_is_sound(name, norm, mode):
    model, x, bounded = build(NETWORKS[name], conv_mode=mode)
    least, greatest = extremes(model, x, norm, NORMS[norm])
    width = {}
    for method in METHODS:
        if name == "back_to_back" and method.startswith("forward"):
            continue  # auto_LiRPA's own Add has no forward bound for images
        lower, upper = bounds(bounded, x, norm, NORMS[norm], method)
        assert torch.isfinite(lower).all() and torch.isfinite(upper).all()
        assert (lower <= least + 1e-5).all() and (upper >= greatest - 1e-5).all(), method
        width[method] = (upper - lower).sum().item()
    assert width["CROWN"] < width["IBP"] or name == "back_to_back", "the relaxations must tell, not only be right"
    assert width["CROWN-Optimized"] < width["CROWN"] - 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_patches_and_matrices_give_the_same(name):
    for method in ("CROWN", "CROWN-Optimized"):
        if name == "back_to_back" and method == "CROWN-Optimized":
            continue  # auto_LiRPA's ReLU shares its variables otherwise in patches
        patches, matrix = (
            bounds(build(NETWORKS[name], conv_mode=mode)[2], build(NETWORKS[name])[1], 2, 0.5, method)
            for mode in ("patches", "matrix")
        )
        for a, b in zip(patches, matrix, strict=True):
            assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_optimising_never_loosens_a_bound(name):
    _, x, bounded = build(NETWORKS[name])
    plain, optimised = (bounds(bounded, x, INF, 0.06, method) for method in ("CROWN", "CROWN-Optimized"))
    assert (optimised[0] >= plain[0] - 1e-5).all() and (optimised[1] <= plain[1] + 1e-5).all()


@pytest.mark.parametrize("room", [0, 100, 1000])
def test_shared_mixes_are_sound_and_no_looser_than_crown(room, monkeypatch):
    monkeypatch.setattr(RelaxedActivation, "max_alpha_per_sample", room)
    model, x, bounded = build(convolutional)
    plain, optimised = (bounds(bounded, x, 2, 0.5, method) for method in ("CROWN", "CROWN-Optimized"))
    groups = {
        a.shape[1] for n in bounded._modules.values() if isinstance(n, RelaxedActivation) for a in n.alpha.values()
    }
    assert (groups == {1}) == (room == 0) and (1 in groups) == (room < 1000)
    least, greatest = extremes(model, x, 2, 0.5)
    assert (optimised[0] <= least + 1e-5).all() and (optimised[1] >= greatest - 1e-5).all()
    assert (optimised[0] >= plain[0] - 1e-5).all() and (optimised[1] <= plain[1] + 1e-5).all()


@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized", "forward", "forward+backward"])
@pytest.mark.parametrize("image", [True, False], ids=["image", "flat"])
def test_below_its_threshold_a_clipped_relu_is_a_relu(image, method):
    def with_activation(activation):
        def make():
            if not image:
                return nn.Sequential(
                    nn.Flatten(), nn.Linear(36, 10), activation(10), nn.Linear(10, 10), activation(10), nn.Linear(10, 3)
                )
            return nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), activation(4), nn.Conv2d(4, 4, 3, stride=2, padding=1), activation(4),
                nn.Flatten(), nn.Linear(36, 3),
            )  # fmt: skip

        return make

    results = []
    for activation in (lambda n: nn.ReLU(), lambda n: ClippedReLU(n, 100.0, learnable=False)):
        _, x, bounded = build(with_activation(activation))
        results.append(bounds(bounded, x, 2, 0.4, method))
    for relu, clipped in zip(*results, strict=True):
        assert torch.allclose(relu, clipped, atol=1e-4)


@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN", "forward"])
@pytest.mark.parametrize("name", ["convolutional", "perceptron"])
def test_gradients_of_bounds_to_thresholds_and_weights(name, method):
    """Against central differences in float64, along random directions of all parameters of one kind."""
    model, x, bounded = build(NETWORKS[name], torch.float64)
    bounded.train()
    weights = [torch.randn(2, 3, dtype=torch.float64) for _ in range(2)]

    def value():
        lower, upper = bounds(bounded, x, 2, 0.4, method)
        return (lower * weights[0]).sum() + (upper * weights[1]).sum()

    names = dict(bounded.named_parameters())
    assert set(names) == set(dict(model.named_parameters()))
    grads = dict(zip(names, torch.autograd.grad(value(), list(names.values())), strict=True))
    for kind in ("threshold", "weight"):
        chosen = [key for key in names if kind in key]
        direction = {key: torch.randn_like(names[key]) for key in chosen}
        expected = sum((grads[key] * direction[key]).sum().item() for key in chosen)
        assert all(grads[key].abs().sum() > 0 for key in chosen)
        ends = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for key in chosen:
                    names[key].add_(step * direction[key])
            ends.append(value().item())
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(expected, rel=1e-4, abs=1e-6)
        with torch.no_grad():
            for key in chosen:
                names[key].add_(1e-6 * direction[key])


def test_the_graph_holds_the_models_own_parameters():
    model, x, bounded = build(convolutional)
    before = bounds(bounded, x, 2, 0.3, "CROWN")[1]
    with torch.no_grad():
        model[1].raw_threshold.mul_(0.1)
    assert not torch.equal(bounds(bounded, x, 2, 0.3, "CROWN")[1], before)
    nodes = [n for n in bounded._modules.values() if isinstance(n, RelaxedActivation)]
    assert [type(n) for n in nodes] == [BoundClippedRelu, BoundMaxMin, BoundClippedMaxMin, BoundClippedRelu]


def test_thresholds_of_nodes():
    model, _, bounded = build(convolutional)
    with torch.no_grad():
        model[1].raw_threshold[0] = -1.0
    first, sort, both, last = (n for n in bounded._modules.values() if isinstance(n, RelaxedActivation))
    (theta,) = first.thresholds()
    assert theta.shape == (1, 4, 1, 1) and theta[0, 0].item() == 0 and (theta >= 0).all()
    assert sort.thresholds() == ()
    ceiling, floor = both.thresholds()
    assert ceiling.shape == floor.shape == (1, 2, 1, 1)
    assert torch.equal(ceiling[0], model[5].max_threshold) and torch.equal(floor[0], model[5].min_threshold)
    (theta,) = last.thresholds()
    assert theta.shape == (1, 6) and torch.autograd.grad(theta.sum(), model[8].raw_threshold)[0].tolist() == [1] * 6


class TestDegenerate:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("case", ["dead", "zero threshold", "saturated", "no radius", "huge threshold", "crossed"])
    def test_no_nan_and_sound(self, case, method):
        def make():
            model = perceptron()
            with torch.no_grad():
                if case == "dead":
                    model[1].bias.fill_(-100.0)
                elif case == "zero threshold":
                    model[2].raw_threshold.fill_(-1.0)
                elif case == "saturated":
                    model[1].bias.fill_(100.0)
                elif case == "huge threshold":
                    model[2].raw_threshold.fill_(1e30)
                elif case == "crossed":
                    model[6].max_threshold.fill_(-0.3)
                    model[6].min_threshold.fill_(0.3)
            return model

        model, x, bounded = build(make)
        eps = 0.0 if case == "no radius" else 0.3
        lower, upper = bounds(bounded, x, 2, eps, method)
        least, greatest = extremes(model, x, 2, eps)
        assert torch.isfinite(lower).all() and torch.isfinite(upper).all()
        assert (lower <= least + 1e-5).all() and (upper >= greatest - 1e-5).all()
        if case in ("dead", "saturated", "zero threshold", "no radius"):
            assert (upper - lower).max() < 1e-4, "nothing behind a constant layer moves"

    @pytest.mark.parametrize("unknown", [INF, float("nan")])
    def test_missing_pre_activation_bounds(self, unknown):
        """A missing bound widens: clipped layers stay finite, and MaxMin says inf, never NaN."""
        _, _, bounded = build(perceptron)
        for node in (n for n in bounded._modules.values() if isinstance(n, RelaxedActivation)):
            shape = (2, *node.output_shape[1:])
            x = SimpleNamespace(lower=torch.full(shape, -unknown), upper=torch.full(shape, unknown))
            start = SimpleNamespace(name="start", output_shape=torch.Size([2, 3]))
            A = torch.randn(3, *shape)
            A[..., 0] = 0
            ((lA, uA), *_), low, high = node.bound_backward(A, A, x, *node.inputs[1:], start_node=start)
            assert torch.isfinite(lA).all() and torch.isfinite(uA).all()
            z = 100 * torch.randn(2, 2000, shape[1])
            value = torch.einsum(
                "sbn,bkn->sbk", A, node(z.flatten(0, 1), *(n() for n in node.inputs[1:])).view(z.shape)
            )
            for bound_A, bias, sign in ((lA, low, 1), (uA, high, -1)):
                assert not torch.isnan(bias).any()
                assert torch.isfinite(bias).all() == isinstance(node, BoundClippedRelu)
                bound = torch.einsum("sbn,bkn->sbk", bound_A, z) + bias[..., None]
                assert (sign * (value - bound) >= -1e-3).all()

    def test_crossed_pre_activation_bounds_are_put_in_order(self):
        _, _, bounded = build(perceptron)
        node = next(n for n in bounded._modules.values() if isinstance(n, BoundMaxMin))
        ends = torch.randn(2, 2, 12).sort(dim=0).values
        A, start = torch.randn(3, 2, 12), SimpleNamespace(name="start")
        sides = [
            node.bound_backward(A, A, SimpleNamespace(lower=low, upper=high), start_node=start)
            for low, high in (ends, ends.flip(0))
        ]
        assert torch.equal(sides[0][0][0][0], sides[1][0][0][0]) and torch.equal(sides[0][1], sides[1][1])


def test_alpha_stays_in_its_range():
    _, x, bounded = build(perceptron, optimize_bound_args={"iteration": 8, "lr_alpha": 5.0})
    bounds(bounded, x, 2, 0.5, "CROWN-Optimized")
    mixes = [a for n in bounded._modules.values() if isinstance(n, RelaxedActivation) for a in n.alpha.values()]
    assert mixes and all(((m >= 0) & (m <= 1)).all() for m in mixes)
    assert any(((m > 0) & (m < 1)).any() or (m != m[:, :, :1]).any() for m in mixes)


def test_specification_matrix():
    model, x, bounded = build(convolutional)
    C = torch.randn(2, 4, 3)
    lower, upper = bounds(bounded, x, 2, 0.4, "CROWN-Optimized", C=C)
    least, greatest = extremes(lambda z: torch.einsum("bso,bo->bs", C, model(z)), x, 2, 0.4)
    assert (lower <= least + 1e-5).all() and (upper >= greatest - 1e-5).all()


@pytest.mark.cuda
@pytest.mark.parametrize("name", NETWORKS)
def test_cuda_agrees_with_cpu(name):
    results = []
    for device in ("cpu", "cuda"):
        model, x, _ = build(NETWORKS[name])
        bounded = auto_LiRPA.BoundedModule(model.to(device), x.to(device), device=device, custom_ops=operators())
        results.append([b.cpu() for b in bounds(bounded, x.to(device), 2, 0.4, "CROWN")])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
