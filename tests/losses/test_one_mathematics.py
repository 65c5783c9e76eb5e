"""One bound, however it is come by: read fast or traced, and with estimated or with certified norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.comparison import Global
from lirpa_lip.errors import UnsupportedOperatorError
from lirpa_lip.losses import make_bound
from lirpa_lip.losses.certified import certified_pairs
from lirpa_lip.losses.local_bound import LocalBound
from lirpa_lip.margin import margin_specification
from lirpa_lip.network.graph import build_graph
from lirpa_lip.network.sequential import SequentialReader
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin
from lirpa_lip.training.models import Normalize

X = torch.rand(3, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
LABELS = torch.tensor([0, 3, 1])
METHODS = ("global-product", "local-product", "local-lip")

ACTIVATIONS: dict[str, Callable[[tuple[int, ...]], nn.Module]] = {
    "relu": lambda shape: nn.ReLU(),
    "maxmin": lambda shape: MaxMin(),
    "clipped relu": lambda shape: ClippedReLU(shape, 0.4),
    "clipped maxmin": lambda shape: ClippedMaxMin(shape[:1], 0.3, -0.2),
    "relu6": lambda shape: nn.ReLU6(),
    "hardtanh": lambda shape: nn.Hardtanh(-0.3, 0.4),
    "tanh": lambda shape: nn.Tanh(),
    "sigmoid": lambda shape: nn.Sigmoid(),
}


class Wrapped(nn.Module):
    """Hides from the fast reader that a network is sequential."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def network(name: str, scale: float = 1.0) -> nn.Sequential:
    """Odd sizes, a stride that does not divide, a nested part, dropout and identity; float64, weights times scale."""
    torch.manual_seed(0)
    make = ACTIVATIONS[name]
    model = nn.Sequential(
        Normalize([0.4, 0.5], [0.3, 0.2]),
        nn.Conv2d(2, 6, 3, stride=2, padding=1),
        make((6, 3, 3)),
        nn.Sequential(nn.Dropout(0.5), nn.Conv2d(6, 4, 2, bias=False), make((4, 2, 2)), nn.Identity()),
        nn.Flatten(),
        nn.Linear(16, 6),
        make((6,)),
        nn.Linear(6, 4),
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(scale)
    return model.double().eval()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_readers_give_the_same_nodes(name: str):
    model = network(name)
    fast = SequentialReader(model, X).graph()
    traced = build_graph(BoundedModule(Wrapped(model).eval(), X))
    shapes = [[n.shape for n in graph.activations] for graph in (fast, traced)]
    assert shapes[0] == shapes[1]
    values = [graph.values(X) for graph in (fast, traced)]
    for a, b in zip(fast.activations, traced.activations, strict=True):
        assert type(a.activation) is type(b.activation)
        torch.testing.assert_close(values[0][a.name], values[1][b.name], rtol=1e-12, atol=1e-12)
        assert (a.isometry_of is None) == (b.isometry_of is None)
    torch.testing.assert_close(values[0][fast.output], model(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_sequential_against_graph(name: str, method: str):
    model = network(name, scale=2.0)
    options = {} if method == "global-product" else {"image_box": (0.0, 1.0)}
    fast, traced = (make_bound(method, m, X, iterations=3, **options) for m in (model, Wrapped(model).eval()))
    assert traced.read.is_traced and not fast.read.is_traced
    for _ in range(2):
        a, b = fast(X, 0.2, LABELS), traced(X, 0.2, LABELS)
        torch.testing.assert_close(a.pair_lipschitz, b.pair_lipschitz, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(a.logits, b.logits, rtol=1e-9, atol=1e-12)
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    grads = [torch.autograd.grad(o.pair_lipschitz.sum(), weights) for o in (a, b)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
    if a.region is not None:
        for one, other in zip(a.region, b.region, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert len(a.intervals) == len(b.intervals)


@pytest.mark.parametrize("interval_gradients", [False, True])
@pytest.mark.parametrize("name", ["relu", "clipped relu", "maxmin", "tanh"])
@pytest.mark.parametrize("method", METHODS)
def test_logits_have_all_gradients_of_the_model(name: str, method: str, interval_gradients: bool):
    """Whoever asks first for a value, an interval without gradients among them."""
    model = network(name)
    options = {} if method == "global-product" else {"interval_gradients": interval_gradients}
    bound = make_bound(method, model, X, **options)
    parameters = list(model.parameters())
    found = torch.autograd.grad(bound(X, 0.2, LABELS).logits.square().sum(), parameters, allow_unused=True)
    true = torch.autograd.grad(model(X).square().sum(), parameters, allow_unused=True)
    assert sum(gradient is not None for gradient in true) >= 6
    for one, other in zip(found, true, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["relu", "clipped relu", "clipped maxmin", "relu6", "hardtanh", "tanh", "sigmoid"])
def test_neurons_are_eliminated_in_training(name: str):
    """Around a sample the saturated or dead neurons take no part: the local product is well below the global one."""
    model = network(name, scale=3.0)
    local, whole = (
        make_bound(m, model, X, iterations=200).eval()(X, 0.02, LABELS).pair_lipschitz for m in METHODS[1::-1]
    )
    others = local > 0
    assert (local <= whole * (1 + 1e-3))[others].all()
    assert local[others].mean() < 0.9 * whole[others].mean()


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bound", ["product", "auto"])
def test_certified_norms_give_the_certifiers_constants(name: str, bound: str):
    """The same pass under the certifier's norms: its constants, entry by entry, for all pairs of points."""
    model = network(name)
    config = LocalLipConfig(bound=bound, certificate="deterministic", anchored=False, seed=0)
    found = certified_pairs(model, X, 0.2, LABELS, config)
    bounded = BoundedModule(model, X, bound_opts={"local_lip": config})
    rows = margin_specification(LABELS, 4, X.dtype)
    expected = bounded.local_lipschitz(x=(ball(0.2),), C=rows).upper
    others = ~nn.functional.one_hot(LABELS, 4).bool()
    torch.testing.assert_close(found.pairs[others], expected.flatten(), rtol=1e-12, atol=0)
    assert found.certificate == "deterministic" and (found.pairs[~others] == 0).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_certified_bounds_hold_and_are_no_looser(name: str):
    """Secants from the sample: margins move no faster, and the training estimate leaves out what makes it larger."""
    model = network(name)
    rows = margin_specification(LABELS, 4, X.dtype)
    others = ~nn.functional.one_hot(LABELS, 4).bool()
    margins = (rows @ model(X).detach().unsqueeze(2)).squeeze(2)
    for method, bound in (("local-product", "product"), ("local-lip", "auto")):
        module = make_bound(method, model, X, certificate="deterministic")
        certified = module(X, 0.2, LABELS).pair_lipschitz[others].reshape(3, 3)
        assert module.certificate == "deterministic" and module.failure_probability == 0.0
        config = replace(LocalLipConfig(certificate="deterministic"), bound=bound)
        bounded = BoundedModule(model, X, bound_opts={"local_lip": config})
        lower, _ = bounded.compute_bounds(x=(ball(0.2),), C=rows, method="local-lip")
        # norms of two runs differ by their random starts, in the ninth digit
        assert (lower.detach() >= margins - 0.2 * certified * (1 + 1e-6)).all()
        steps = {"iterations": 80} | ({"refinements": 40, "rivals": 3} if bound == "auto" else {})
        estimate = make_bound(method, model, X, **steps).eval()(X, 0.2, LABELS).pair_lipschitz[others].reshape(3, 3)
        assert (certified <= estimate * (1 + 2e-2)).all()


def test_global_bound_is_the_certifiers():
    model = network("clipped maxmin")
    config = LocalLipConfig(certificate="deterministic", norm_tolerance=1e-3)
    rows = torch.eye(4, dtype=X.dtype)[LABELS].unsqueeze(1) - torch.eye(4, dtype=X.dtype)
    expected = Global(model, X[:1], config).lipschitz(X, rows, 0.0).upper
    found = make_bound("global-product", model, X, certificate="deterministic")(X, 0.3, LABELS).pair_lipschitz
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_changed_modules_are_not_read_fast():
    """A subclass with a forward of its own, a hook, a replaced forward: what is read would be another network."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    hooked = nn.Linear(3, 3)
    hooked.register_forward_hook(lambda module, args, output: 2 * output)
    replaced = nn.Linear(3, 3)
    replaced.forward = lambda x: 2 * nn.functional.linear(x, replaced.weight)  # type: ignore[method-assign]
    for layer in (Doubled(3, 3), hooked, replaced):
        with pytest.raises(UnsupportedOperatorError, match="forward is changed"):
            SequentialReader(nn.Sequential(layer), torch.zeros(1, 3))
    parametrized = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    graph = SequentialReader(nn.Sequential(parametrized), torch.zeros(1, 3)).graph()
    torch.testing.assert_close(graph.values(torch.ones(1, 3))[graph.output], parametrized(torch.ones(1, 3)))


def test_in_place_modules_change_nothing():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Hardtanh(), nn.Linear(5, 3))
    in_place = nn.Sequential(plain[0], nn.ReLU(inplace=True), plain[2], nn.Hardtanh(inplace=True), plain[4])
    x = torch.rand(2, 4)
    a, b = (LocalBound(m, x)(x, 0.1).pair_lipschitz for m in (plain, in_place))
    torch.testing.assert_close(a, b)


def ball(eps: float) -> BoundedTensor:
    return BoundedTensor(X, PerturbationLpNorm(norm=2, eps=eps))
