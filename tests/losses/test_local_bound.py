"""The training bounds with converged norms: against dense SVDs, sampling, the certified bound, and each other."""

from __future__ import annotations

import pytest
import torch
from networks.classifiers import SHAPE, dense_product, small_network, worst_rate
from sampling import ball_points
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.errors import ConfigError, DomainError
from lirpa_lip.local.layers import Layers
from lirpa_lip.local.training_pass import feature_node, training_pass
from lirpa_lip.losses import make_bound
from lirpa_lip.losses.global_bound import GlobalBound
from lirpa_lip.losses.local_bound import LocalBound
from lirpa_lip.losses.pairs import masked_pair_norms
from lirpa_lip.losses.warm_norm import BLOCK, WarmNorms
from lirpa_lip.margin import margin_specification
from lirpa_lip.network.node import node_interval
from lirpa_lip.network.sequential import SequentialReader
from lirpa_lip.nn import ClippedMaxMin
from lirpa_lip.regions.region import Region
from lirpa_lip.training.models import ACTIVATIONS

X = torch.rand(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 4, 2, 2])
MANY = 150


def passed(bound: LocalBound, eps: float) -> Layers:
    region = Region.make(X, eps, *(bound.config.image_box or (None, None)))
    return training_pass(bound.read(), region, bound.config, WarmNorms(bound.starts, bound.iterations))[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("eps", [0.05, 0.5])
def test_product_equals_dense_svds(activation: str, eps: float):
    bound = LocalBound(small_network(activation), X, iterations=800).eval()
    graph, layers = bound.read(), passed(bound, eps)
    (source,) = graph.sources(graph.output)
    expected = dense_product(graph, layers).expand(len(X))
    torch.testing.assert_close(layers[source].live_rate, expected, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
@pytest.mark.parametrize("method", ["product", "auto"])
def test_intervals_hold(activation: str, box: tuple[float, float] | None, method: str):
    model, eps = small_network(activation), 0.3
    bound = LocalBound(model, X, bound=method, iterations=MANY, refinements=MANY, image_box=box).eval()
    layers, graph = passed(bound, eps), bound.read()
    points = ball_points(X, eps, 60)
    points = points if box is None else points.clamp(*box)
    values = graph.values(points.flatten(0, 1))
    for layer in layers.values():
        here = values[layer.parent].reshape(60, len(X), *layer.lower.shape[1:])
        assert (here >= layer.lower - 1e-9).all() and (here <= layer.upper + 1e-9).all()
    assert any(layer.upper.isfinite().all() for layer in layers.values()) or activation == "maxmin"
    region = bound(X, eps, LABELS).region
    features = values[feature_node(graph)[0]].flatten(1).reshape(60, len(X), -1)
    assert (features >= region.lower - 1e-9).all() and (features <= region.upper + 1e-9).all()
    assert ((features - region.center).norm(dim=2) <= region.radius * (1 + 1e-6) + 1e-9).all()
    torch.testing.assert_close(values[graph.output], model(points.flatten(0, 1)))


@pytest.mark.parametrize("name", ["local-product", "local-lip"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("eps", [0.05, 0.4])
def test_bounds_sampled_rates(name: str, activation: str, eps: float):
    model = small_network(activation)
    options = {"iterations": MANY} | ({"refinements": MANY} if name == "local-lip" else {})
    bound = make_bound(name, model, X, **options).eval()
    pairs = bound(X, eps, LABELS).pair_lipschitz
    rates = worst_rate(model, X, LABELS, eps)
    assert (rates <= pairs * (1 + 1e-6) + 1e-9).all()


def super_product(model: nn.Module, eps: float) -> Tensor:
    return LocalBound(model, X, iterations=MANY).eval()(X, eps, LABELS).pair_lipschitz


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_order_of_the_bounds(activation: str):
    """composed ≤ local product ≤ global, for every pair."""
    model, eps = small_network(activation), 0.2
    whole = GlobalBound(model, X, "deterministic")(X, eps, LABELS).pair_lipschitz
    local = super_product(model, eps)
    composed = (
        make_bound("local-lip", model, X, iterations=MANY, refinements=MANY).eval()(X, eps, LABELS).pair_lipschitz
    )
    assert (local <= whole * (1 + 1e-6)).all()
    assert (composed <= local * (1 + 1e-9)).all()
    assert composed.mean() < 0.95 * local.mean()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_composed_is_near_the_certified_one(activation: str):
    model, eps = small_network(activation), 0.2
    config = LocalLipConfig(bound="composed", certificate="deterministic")
    bounded = BoundedModule(model, X, bound_opts={"local_lip": config})
    ball = BoundedTensor(X, PerturbationLpNorm(norm=2, eps=eps))
    rows = margin_specification(LABELS, 5, X.dtype)
    lower, _ = bounded.compute_bounds(x=(ball,), C=rows, method="local-lip")
    logits = model(X).detach()
    margins = (rows @ logits.unsqueeze(2)).squeeze(2)
    certified = (margins - lower.detach()) / eps
    options = {"iterations": MANY, "refinements": MANY, "rivals": 4}
    pairs = make_bound("local-lip", model, X, **options).eval()(X, eps, LABELS).pair_lipschitz
    others = ~nn.functional.one_hot(LABELS, 5).bool()
    ratio = certified / pairs.detach()[others].reshape(4, 4)
    assert ((ratio > 0.6) & (ratio < 1.2)).all()


@pytest.mark.parametrize("name", ["local-product", "local-lip"])
def test_few_iterations_are_right_on_average(name: str):
    """While training, what one iteration falls short of is measured and made up for; it is kept in eval mode."""
    model, eps = small_network("relu"), 0.2
    bound = make_bound(name, model, X, iterations=1)
    options = {"refinements": MANY} if name == "local-lip" else {}
    true = make_bound(name, model, X, iterations=MANY, **options).eval()(X, eps, LABELS).pair_lipschitz.sum()
    short = bound.eval()(X, eps, LABELS).pair_lipschitz.sum()
    bound.train()
    for _ in range(101):
        bound(X, eps, LABELS)
    found = bound.eval()(X, eps, LABELS).pair_lipschitz.sum()
    assert short < 0.9 * true
    assert abs(found - true) < 0.05 * true


def test_zero_radius_is_the_jacobian():
    """On a ball of radius 0 every slope is known: the composed bound is the norm of the gradient."""
    model = small_network("relu")
    composed = make_bound("local-lip", model, X, iterations=MANY).eval()(X, 0.0, LABELS).pair_lipschitz
    for b in range(len(X)):
        x = X[b : b + 1].clone().requires_grad_()
        logits = model(x)
        margins = logits[0, LABELS[b]] - logits[0]
        norms = [torch.autograd.grad(m, x, retain_graph=True)[0].norm() if m != 0 else 0.0 for m in margins]
        rival = (logits[0].detach()).scatter(0, LABELS[b : b + 1], -torch.inf).argmax()
        assert composed[b, rival].item() == pytest.approx(float(norms[rival]), rel=1e-9)


def test_dead_network():
    """All neurons dead: nothing can change, and the start vectors survive."""
    model = small_network("relu")
    nn.init.constant_(model[1].bias, -1e3)
    for name in ("local-product", "local-lip"):
        bound = make_bound(name, model, X)
        for _ in range(3):
            output = bound(X, 0.1, LABELS)
        assert (output.pair_lipschitz == 0).all()
        output.pair_lipschitz.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        assert all((b.norm() > 0.5).all() for b in bound.buffers())


def test_known_order_removes_rows():
    """A stable pair of a clipped MaxMin: its constant output takes its own row with it, and no other."""
    layer = ClippedMaxMin((4,), max_threshold=1.0, min_threshold=-1.0)
    lower = torch.tensor([[3.0, 0.2, 0.0, 0.5]])  # pairs (3 … 4, 0 … 0.5) and (0.2 … 0.8, 0.5 … 0.9)
    upper = torch.tensor([[4.0, 0.8, 0.5, 0.9]])
    graph = SequentialReader(nn.Sequential(layer), lower).graph()
    clip = graph[graph.output]

    def masks(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        known = {graph.input: (lower, upper)}
        for node in graph:
            if not node.is_input:
                known[node.name] = node_interval(node, known)
        fold = graph[clip.isometry_of.fold]
        slopes = fold.activation.slope_range(*known[fold.parents[0]])
        columns = clip.activation.slope_range(*known[clip.parents[0]]).magnitude
        return clip.isometry_of.pull_back(slopes.centre, slopes.stable, columns), columns

    rows, columns = masks(lower, upper)
    assert columns.tolist() == [[0.0, 1.0, 1.0, 1.0]]
    assert rows.tolist() == [[0.0, 1.0, 1.0, 1.0]]
    rows, columns = masks(lower.roll(2, 1), upper.roll(2, 1))
    assert columns.tolist() == [[0.0, 1.0, 1.0, 1.0]]
    assert rows.tolist() == [[1.0, 1.0, 0.0, 1.0]]


def test_masked_pair_norms():
    weight = torch.randn(6, 9, dtype=torch.float64)
    mask = torch.randint(0, 2, (4, 9)).double()
    found = masked_pair_norms(weight, LABELS, mask)
    expected = ((weight.unsqueeze(0) - weight[LABELS].unsqueeze(1)) * mask.unsqueeze(1)).norm(dim=2)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(masked_pair_norms(weight, LABELS, None), torch.cdist(weight, weight)[LABELS])


@pytest.mark.parametrize("name", ["global-product", "local-product", "local-lip"])
def test_no_state_per_sample(name: str):
    """What a bound keeps has the size of a few inputs and activations, or a block of them, whatever passes."""
    bound = make_bound(name, small_network(), X)
    before = sum(b.numel() for b in bound.buffers())
    for batch in (1, 3, 50):
        bound(torch.rand(batch, *SHAPE, dtype=torch.float64), 0.1)
    assert sum(b.numel() for b in bound.buffers()) == before < 3000 * (BLOCK if name == "global-product" else 1)


@pytest.mark.parametrize("name", ["local-product", "local-lip"])
def test_general_graphs(name: str):
    """A residual network, which has no stages, goes through its traced graph."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(72, 8), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.first(x.flatten(1)))
            return self.last(torch.relu(h + self.second(h)))

    model = Residual().double()
    bound = make_bound(name, model, X, iterations=50)
    output = bound(X, 0.2, LABELS)
    output.pair_lipschitz.sum().backward()
    assert bound.read.is_traced
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in (model.first.weight, model.last.weight))
    assert (worst_rate(model, X, LABELS, 0.2) <= bound.eval()(X, 0.2, LABELS).pair_lipschitz * (1 + 1e-4)).all()


@pytest.mark.parametrize("name", ["local-product", "local-lip"])
def test_outside_a_domain_nothing_is_bounded(name: str):
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :5].sqrt()

    bound = make_bound(name, Root().eval(), X + 1)
    assert (worst_rate(Root(), X + 1, LABELS, 0.5) <= bound(X + 1, 0.5, LABELS).pair_lipschitz * 1.01).all()
    with pytest.raises(DomainError):
        bound(X + 1, 5.0, LABELS)


@pytest.mark.parametrize("name", ["local-product", "local-lip"])
def test_radius_per_sample(name: str):
    model = small_network()
    bound = make_bound(name, model, X, iterations=MANY).eval()
    eps = torch.tensor([0.0, 0.1, 0.2, 0.4], dtype=torch.float64)
    together = bound(X, eps, LABELS).pair_lipschitz
    for b in range(len(X)):
        alone = bound(X[b : b + 1], eps[b], LABELS[b : b + 1]).pair_lipschitz[0]
        torch.testing.assert_close(together[b], alone, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [("local-product", {"iterations": 0}), ("local-lip", {"rivals": 0}), ("local-lip", {"refinements": -1})],
)
def test_counts_that_make_no_sense(name: str, options: dict[str, int]):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
        make_bound(name, small_network("relu"), X, **options)
