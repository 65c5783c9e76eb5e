"""CROWN-type bounds as served by `lirpa_lip`: constants and convolutions of any kind, rounding, and failures."""

import itertools
import math

import pytest
import torch
from auto_LiRPA import BoundedTensor
from sampling import assert_sound
from torch import nn
from torch.nn import functional as F

from lirpa_lip import BoundedModule
from lirpa_lip.autolirpa.calls import in_float64
from lirpa_lip.autolirpa.perturbation import PerturbationLpNorm
from lirpa_lip.errors import LirpaLipError, MethodFailedError, ShapeError
from lirpa_lip.local.bounds import network_graph
from lirpa_lip.network.linear_bound_errors import linear_bound_rounding
from lirpa_lip.nn import MaxMin
from lirpa_lip.wrapping.convolution_bound import plain_kernel

METHODS = ("ibp", "crown", "alpha-crown", "local-lip-crown")


class Call(nn.Module):
    """A function of the input and of buffers, as a module."""

    def __init__(self, fn, **buffers):
        super().__init__()
        self.fn = fn
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return self.fn(self, x)


def wrapped(model, x, traced=None, **options):
    options = {"optimize_bound_args": {"iteration": 2}, **options}
    return BoundedModule(model, torch.randn_like(x) if traced is None else traced, bound_opts=options)


def bounds(model, x, method, eps=0.1, norm=2.0, bounded=None, C=None, **options):
    bounded = wrapped(model, x, **options) if bounded is None else bounded
    return bounded.compute_bounds(x=(BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=eps)),), method=method, C=C)


def check(model, x, method, eps=0.1, norm=2.0, **options):
    """Sound on the region, and the value itself where it is a point."""
    tol = 1e-8 if x.dtype == torch.float64 else 2e-5
    lower, upper = (t.detach() for t in bounds(model, x, method, eps, norm, **options))
    rows = torch.eye(lower.shape[1], dtype=x.dtype).expand(len(x), -1, -1)
    reach = eps if norm == 2 else eps * 0.99  # the ball of that radius lies in the box
    scale = 1 + float(model(x).detach().abs().max())
    assert_sound(model, x, reach, rows, lower, upper, count=60, tol=tol * scale)
    assert bool((lower <= upper + tol * scale).all())
    if eps == 0:
        assert torch.allclose(lower, model(x).detach(), atol=10 * tol * scale)
        assert torch.allclose(upper, model(x).detach(), atol=10 * tol * scale)
    return lower, upper


# ---- convolutions -------------------------------------------------------------------------------------------------
CONVOLUTIONS = [
    (groups, kernel, dilation, stride, padding)
    for groups, kernel, dilation, stride, padding in itertools.product(
        (1, 2, 4), (1, 2, 3, (3, 1)), (1, 2, (1, 2)), (1, 2, (1, 2)), (0, 1, (1, 0))
    )
]  # fmt: skip


def convolutional(groups, kernel, dilation, stride, padding, dtype=torch.float64):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups)
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), layer, nn.Conv2d(8, 3, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )
    body(torch.zeros(1, 2, 6, 6))
    return body.to(dtype).eval(), torch.rand(2, 2, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CONVOLUTIONS[::3], ids=str)
def test_patches_of_every_convolution_are_those_of_matrices(case):
    model, x = convolutional(*case)
    found = check(model, x, "crown", 0.3)
    expected = bounds(model, x, "crown", 0.3, conv_mode="matrix")
    assert all(torch.allclose(a, b.detach(), atol=1e-9) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_groups_and_dilation_keep_patches(groups, dilation, norm):
    model, x = convolutional(groups, 3, dilation, 1, dilation)
    assert BoundedModule(model, x).conv_mode == "patches"
    for method in ("crown", "alpha-crown"):
        check(model, x, method, 0.1, norm)


def test_plain_kernel_is_the_same_convolution():
    for groups, dilation in itertools.product((1, 2, 3), ((1, 1), (2, 2), (1, 3))):
        weight, x = torch.randn(6, 6 // groups, 3, 2, dtype=torch.float64), torch.randn(2, 6, 9, 9, dtype=torch.float64)
        expected = F.conv2d(x, weight, dilation=dilation, groups=groups)
        assert torch.allclose(F.conv2d(x, plain_kernel(weight, groups, list(dilation))), expected)


@pytest.mark.parametrize("method", ["crown", "local-lip-crown"])
def test_depthwise_network_has_its_own_value(method):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 4, 1),
        nn.Flatten(), nn.Linear(64, 3),
    ).eval()  # fmt: skip
    for eps in (0.0, 0.2):
        check(model, torch.randn(3, 4, 4, 4), method, eps)


def test_dilated_convolution_behind_a_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2, dilation=2), nn.Conv2d(3, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)
    ).eval()
    for eps in (0.0, 0.2):
        check(model, torch.randn(3, 2, 6, 6), "crown", eps)


def test_padding_is_taken_out_whoever_reads_the_convolution():
    """A ReLU reads it, and a sum, so that coefficients reach it with padding and without."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = first, second, nn.Linear(50, 3)

        def forward(self, x):
            z = self.first(x)
            return self.last(torch.relu(self.second(z + torch.relu(z))).flatten(1))

    for eps in (0.0, 0.1):
        check(Skip().eval(), torch.rand(2, 2, 5, 5), "crown", eps)


# ---- constants ----------------------------------------------------------------------------------------------------
OPERATIONS = {
    "x + b": lambda m, x: x + m.b,
    "x - b": lambda m, x: x - m.b,
    "b - x": lambda m, x: m.b - x,
    "x * b": lambda m, x: x * m.b,
    "b * x": lambda m, x: m.b * x,
    "x / b": lambda m, x: x / m.b,
}
SHAPES = {
    "flat": ((4,), [(), (1,), (4,), (1, 4), (1, 1)]),
    "line": ((2, 4), [(), (1,), (4,), (2, 1), (1, 2, 1), (1, 2, 4)]),
    "image": ((2, 4, 4), [(), (1,), (4,), (2, 1, 1), (1, 2, 1, 1), (4, 4), (1, 2, 4, 4)]),
}
CONSTANTS = [(layout, shape) for layout, (_, shapes) in SHAPES.items() for shape in shapes]


def with_constant(operation, layout, shape, behind, dtype=torch.float64):
    """The operation first, or behind a layer; the constant has both signs."""
    torch.manual_seed(1)
    constant = (torch.rand(shape) + 0.4) * torch.where(torch.rand(shape) < 0.5, -1.0, 1.0)
    arithmetic = Call(OPERATIONS[operation], b=constant)
    if layout == "image":
        layers = [nn.Conv2d(2, 2, 3, padding=1)] if behind else []
        rest = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)]
    else:
        layers = [nn.Linear(4, 4)] if behind and layout == "flat" else []
        width = 4 if layout == "flat" else 8
        rest = [nn.ReLU(), nn.Flatten(), nn.Linear(width, 3)]
    return nn.Sequential(*layers, arithmetic, *rest).to(dtype).eval()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("layout", "shape"), CONSTANTS, ids=str)
def test_constants_of_every_shape(layout, shape, operation):
    sample = SHAPES[layout][0]
    for batch, traced, behind in ((4, 1, False), (4, 4, True), (1, 4, True), (3, 2, True)):
        model = with_constant(operation, layout, shape, behind)
        x = torch.randn(batch, *sample, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
        bounded = wrapped(model, x, torch.zeros(traced, *sample, dtype=torch.float64))
        for method in ("ibp", "crown"):
            check(model, x, method, 0.0, bounded=bounded)
            check(model, x, method, 0.1, bounded=bounded)


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", SHAPES)
def test_normalisation_in_every_method(layout, dtype, norm):
    """x − mean of shape (1,) with as many samples as features, then ÷ deviation: ACAS-Xu's form."""
    sample = SHAPES[layout][0]
    model = nn.Sequential(
        with_constant("x - b", layout, (1,), False)[0], with_constant("x / b", layout, (1,), False), nn.ReLU()
    ).to(dtype)
    x = torch.randn(4, *sample, dtype=dtype)
    bounded = wrapped(model, x)
    for method in METHODS if norm == 2 else METHODS[:3]:
        for eps in (0.0, 0.2):
            check(model, x, method, eps, norm, bounded=bounded)


def test_normalisation_keeps_patches_and_the_bounds_of_matrices():
    torch.manual_seed(0)
    mean, std = torch.rand(1, 2, 1, 1), torch.rand(1, 2, 1, 1) + 0.3
    model = nn.Sequential(
        Call(lambda m, x: (x - m.mean) / m.std, mean=mean, std=std), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(),
        nn.Conv2d(3, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3),
    ).double().eval()  # fmt: skip
    x = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    assert BoundedModule(model, x).conv_mode == "patches"
    for method, norm in itertools.product(("crown", "alpha-crown"), (2.0, math.inf)):
        found = check(model, x, method, 0.1, norm)
        expected = bounds(model, x, method, 0.1, norm, conv_mode="matrix")
        if method == "crown":
            assert all(torch.allclose(a, b.detach(), atol=1e-9) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_concatenation_with_a_constant_of_as_many_samples(batch):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 3), Call(lambda m, z: torch.cat([z, torch.ones(z.shape[0], 2)], 1)), nn.Linear(5, 4), nn.ReLU(),
        nn.Linear(4, 2),
    ).eval()  # fmt: skip
    for eps in (0.0, 0.3):
        check(model, torch.randn(batch, 4), "crown", eps, traced=torch.randn(3, 4))


def test_a_constant_of_other_samples_is_refused_by_name():
    model = Call(lambda m, x: x + m.b, b=torch.rand(3, 4)).eval()
    bounded = BoundedModule(model, torch.zeros(3, 4))
    ball = (BoundedTensor(torch.rand(2, 4), PerturbationLpNorm(norm=2, eps=0.1)),)
    with pytest.raises(LirpaLipError):  # where the model itself refuses them, it is asked first
        bounded.compute_bounds(x=ball, method="crown")


# ---- operators that met patches they do not know ------------------------------------------------------------------
def around(*layers, shape=(2, 6, 6)):
    torch.manual_seed(0)
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(1, *shape))
    return model.eval(), torch.randn(2, *shape)


UNKNOWN = {
    "abs": lambda: around(nn.Conv2d(2, 4, 3), Call(lambda m, x: x.abs()), nn.Conv2d(4, 2, 2)),
    "max-min": lambda: around(nn.Conv2d(2, 4, 3, padding=1), MaxMin(), nn.Conv2d(4, 4, 3), MaxMin()),
    "hardswish": lambda: around(nn.Conv2d(2, 4, 3), MaxMin(), nn.Conv2d(4, 4, 2), nn.Hardswish()),
    "silu": lambda: around(nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 2), nn.SiLU()),
    "transposed": lambda: around(nn.ConvTranspose2d(2, 4, 2, stride=2), nn.BatchNorm2d(4), nn.LeakyReLU(0.1),
                                 nn.Conv2d(4, 2, 3, stride=2)),
    "transposed-padded": lambda: around(nn.Conv2d(2, 4, 3), nn.ReLU(),
                                        nn.ConvTranspose2d(4, 3, (3, 2), 2, 1, output_padding=1), nn.ReLU()),
    "flatten-2": lambda: around(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(16, 3), nn.ReLU()),
    "permute": lambda: around(nn.Conv2d(2, 3, 3), nn.ReLU(), Call(lambda m, x: x.permute(0, 1, 3, 2)),
                              nn.Conv2d(3, 3, 2)),
    "flat-residual": lambda: around(nn.Linear(6, 5), nn.ReLU(), Call(lambda m, x: x + torch.relu(x - 0.3)), nn.ReLU(),
                                    shape=(6,)),
    "linear-on-images": lambda: around(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), shape=(1, 4, 6)),
    "avg-pool-1d": lambda: around(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool1d(2), shape=(2, 8)),
    "adaptive-pool-1d": lambda: around(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(3), shape=(2, 8)),
    "transposed-1d": lambda: around(nn.ConvTranspose1d(2, 4, 3, 2), nn.ReLU(), nn.Conv1d(4, 2, 3), shape=(2, 8)),
    "conv-1d-dilated": lambda: around(nn.Conv1d(2, 4, 2, dilation=2), nn.BatchNorm1d(4), nn.ReLU(), shape=(2, 8)),
}  # fmt: skip


@pytest.mark.parametrize("method", ["crown", "local-lip-crown", "local-lip"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_operators_patches_do_not_know(name, method):
    model, x = UNKNOWN[name]()
    bounded = wrapped(model, x)
    for eps in (0.0, 0.2):
        check(model, x, method, eps, bounded=bounded)


@pytest.mark.parametrize("name", UNKNOWN)
def test_our_methods_after_one_of_auto_lirpas(name):
    model, x = UNKNOWN[name]()
    bounded = BoundedModule(model, x)
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1)),)
    alone = bounded.compute_bounds(x=ball, method="local-lip")
    bounded.compute_bounds(x=ball, method="crown")
    again = bounded.compute_bounds(x=ball, method="local-lip")
    # norms start at random, and are within one per cent of each other
    assert all(torch.allclose(a, b, rtol=0.05, atol=0.05) for a, b in zip(alone, again, strict=True))


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_max_min_behind_a_convolution_with_a_box(eps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), MaxMin(), nn.Conv2d(4, 4, 3), MaxMin(), nn.Flatten(),
                          nn.Linear(64, 3)).double().eval()  # fmt: skip
    x = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    region = PerturbationLpNorm(norm=2, eps=eps, x_L=torch.zeros_like(x), x_U=torch.ones_like(x))
    bounded = BoundedModule(model, x)
    for method in ("crown", "local-lip-crown"):
        lower, upper = bounded.compute_bounds(x=(BoundedTensor(x, region),), method=method)
        rows = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
        assert_sound(model, x, eps, rows, lower.detach(), upper.detach(), count=60, tol=1e-9, low=0, high=1)


# ---- failures -----------------------------------------------------------------------------------------------------
def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    x = torch.rand(2, 1, 4, 4)
    return BoundedModule(model, x), (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1)),)


def test_a_failure_is_one_error_and_leaves_no_trace():
    bounded, ball = small()
    expected = bounded.compute_bounds(x=ball, method="crown")
    wrong = (BoundedTensor(torch.rand(2, 1, 5, 5), PerturbationLpNorm(norm=2, eps=0.1)),)
    with pytest.raises(LirpaLipError):
        bounded.compute_bounds(method="crown", x=wrong)
    with pytest.raises(MethodFailedError, match="local-lip") as failure:
        bounded.compute_bounds(method="crown", x=ball, C=torch.rand(2, 3, 7))
    assert failure.value.method == "crown" and failure.value.__cause__ is not None
    bounded.compute_bounds(x=ball, method="local-lip")
    found = bounded.compute_bounds(x=ball, method="crown")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_error_names_the_node(monkeypatch):
    bounded, ball = small()
    node = next(n for n in bounded._modules.values() if type(n).__name__ == "BoundRelu")

    def fails(self, *args, **kwargs):
        raise IndexError("tuple index out of range")

    monkeypatch.setattr(type(node), "bound_backward", fails)
    with pytest.raises(MethodFailedError, match="tuple index") as failure:
        bounded.compute_bounds(x=ball, method="crown")
    assert failure.value.node == node.name and failure.value.operator == "BoundRelu"


@pytest.mark.parametrize("error", [ShapeError("ours"), MemoryError(), torch.OutOfMemoryError(), KeyboardInterrupt()])
def test_what_is_not_a_failure_of_the_method_passes(error, monkeypatch):
    bounded, ball = small()
    node = next(n for n in bounded._modules.values() if type(n).__name__ == "BoundRelu")

    def fails(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(type(node), "bound_backward", fails)
    with pytest.raises(type(error)):
        bounded.compute_bounds(x=ball, method="crown")


def test_a_failure_in_patches_is_tried_on_matrices(monkeypatch):
    model, x = convolutional(1, 3, 1, 1, 1)
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1)),)
    bounded = BoundedModule(model, x)
    expected = bounded.compute_bounds(x=ball, method="crown")
    node = next(n for n in bounded._modules.values() if type(n).__name__ == "BoundConv")
    rule = type(node).bound_backward

    def fails(self, last_lA, *args, **kwargs):
        assert isinstance(last_lA, torch.Tensor)
        return rule(self, last_lA, *args, **kwargs)

    monkeypatch.setattr(type(node), "bound_backward", fails)
    bounded = BoundedModule(model, x)
    found = bounded.compute_bounds(x=ball, method="crown")
    assert bounded.conv_mode == "matrix"
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(found, expected, strict=True))


# ---- rounding -----------------------------------------------------------------------------------------------------
def cancelling(size=1e7):
    """float32 weights and biases of 1e7 that cancel one layer later."""
    torch.manual_seed(0)
    first, second, last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
    with torch.no_grad():
        first.bias += size
        second.bias -= (second.weight.double() @ first.bias.double()).float()
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last).eval()


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.5])
def test_cancelling_biases(eps):
    model, x = cancelling(), torch.rand(2, 4)
    lower, upper = (t.detach().double() for t in bounds(model, x, "local-lip-crown", eps))
    rows = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    assert_sound(cancelling().double(), x.double(), eps, rows, lower, upper, tol=1e-12)


@pytest.mark.parametrize("intermediate", ["ibp", "crown", "alpha-crown"])
def test_cancelling_biases_in_jacobian_bounds(intermediate):
    model, x = cancelling(), torch.rand(2, 4)
    bounded = BoundedModule(model, x)
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.05)),)
    upper = bounded.local_lipschitz(ball, method="clarke-jacobian", intermediate=intermediate).upper
    exact = cancelling().double()
    slopes = [
        torch.linalg.matrix_norm(torch.autograd.functional.jacobian(exact, p.double()), 2)
        for p in x + 0.02 * torch.randn(20, 2, 4)
        for p in p
    ]
    assert float(upper.max()) >= max(map(float, slopes)) > 0.1


def test_the_module_keeps_its_precision_and_its_bounds():
    bounded, ball = small()
    bounded.compute_bounds(x=ball, method="crown")
    before = {name: dict(vars(node)) for name, node in bounded._modules.items()}
    bounded.compute_bounds(x=ball, method="local-lip-crown")
    assert {p.dtype for p in bounded.parameters()} == {torch.float32}
    for name, node in bounded._modules.items():
        assert vars(node).keys() == before[name].keys()
        assert all(vars(node)[key] is value for key, value in before[name].items())


def test_parameters_get_gradients_through_float64():
    bounded, ball = small()
    bounded.train()
    with in_float64(bounded):
        assert {p.dtype for p in bounded.parameters()} == {torch.float64}
    lower, _ = bounded.compute_bounds(x=ball, method="local-lip-crown")
    lower.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in bounded.parameters())


def test_rounding_of_linear_bounds_is_small_and_grows_with_what_cancels():
    for size, most in ((0.0, 1e-11), (1e7, 1e-4)):
        model = cancelling(size).double()
        graph = network_graph(BoundedModule(model, torch.zeros(1, 4, dtype=torch.float64)))
        x = torch.rand(3, 4, dtype=torch.float64)
        error = linear_bound_rounding(graph, (x - 0.1, x + 0.1))[graph.output]
        assert bool((error > size * 1e-16).all()) and float(error.max()) < most


def test_live_weights_enter_the_float64_pass():
    bounded, ball = small()
    before = bounded.compute_bounds(x=ball, method="local-lip-crown")[0]
    with torch.no_grad():
        for parameter in bounded.parameters():
            parameter.mul_(2)
    assert not torch.allclose(bounded.compute_bounds(x=ball, method="local-lip-crown")[0], before, atol=1e-3)
