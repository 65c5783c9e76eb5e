"""The composed bound's parts against brute force."""

from __future__ import annotations

import torch
from networks.small import Residual, networks, propagated, wrap

from lirpa_lip.local.composed import composed_rate
from lirpa_lip.local.layers import centres, safe_sqrt
from lirpa_lip.local.linearised import StackedMap, affine_map, pull_back, push_forward
from lirpa_lip.local.norm_budget import NormBudget


def test_stacked_map_is_its_own_adjoint_pair():
    net, shape = networks()["residual"]
    bounded, x = wrap(net, shape)
    graph, layers, _ = propagated(bounded, x, 0.3)
    scales = {graph.input: torch.ones_like(x), **{n: safe_sqrt(v.slopes.radius) for n, v in layers.items()}}
    map_ = StackedMap(graph, graph.output, centres(layers), scales, None)
    t = torch.randn(len(x), *map_.in_shape, dtype=x.dtype)
    y = torch.randn(len(x), *map_.out_shape, dtype=x.dtype)
    with torch.no_grad():
        left, right = (map_.forward(t) * y).sum(), (t * map_.adjoint(y)).sum()
        assert torch.allclose(left, right, rtol=1e-10)
        picked = map_.select(torch.tensor([2, 0]))
        assert torch.allclose(picked.forward(t[[2, 0]]), map_.forward(t)[[2, 0]])


def test_push_forward_is_the_jacobian_where_all_is_stable():
    """On a region of radius zero every slope is known, and the linearised network is the network's derivative."""
    net, shape = networks()["residual"]
    bounded, x = wrap(net, shape)
    graph, layers, _ = propagated(bounded, x, 0.0)
    direction = torch.randn_like(x)
    with torch.no_grad():
        tangent = push_forward(graph, graph.output, {graph.input: direction}, centres(layers))
    _, expected = torch.func.jvp(net, (x,), (direction,))
    assert torch.allclose(tangent, expected.detach(), rtol=1e-6, atol=1e-9)


def test_affine_maps_sum_over_paths():
    """``x + conv(x)`` from the input to the first pre-activation is identity plus convolution."""
    net = Residual().double()
    bounded, x = wrap(net, (2, 5, 5))
    graph, _, _ = propagated(bounded, x, 0.1)
    first = graph.activations[0].parents[0]
    step = torch.randn_like(x)
    with torch.no_grad():
        expected = step + torch.nn.functional.conv2d(step, net.conv1.weight, padding=1)
        assert torch.allclose(affine_map(graph, graph.input, first).forward(step), expected)
        collected = pull_back(graph, first, expected, {})
    assert set(collected) == {graph.input}


def test_stacked_norm_at_most_the_sum_of_norms():
    net, shape = networks()["mlp-relu"]
    bounded, x = wrap(net, shape, certificate="deterministic")
    graph, layers, _ = propagated(bounded, x, 0.6)
    config = bounded.bound_opts["local_lip"]
    with torch.no_grad():
        together = composed_rate(graph, graph.output, None, layers, NormBudget(config, 10))
        total = torch.zeros(len(x), dtype=x.dtype)
        for name in [graph.input, *layers]:
            ones = torch.ones_like(x) if name == graph.input else safe_sqrt(layers[name].slopes.radius)
            part = StackedMap(graph, graph.output, centres(layers), {name: ones}, None).dense()
            rate = 1.0 if name == graph.input else layers[name].open_rate
            total = total + torch.linalg.matrix_norm(part, 2) * rate
    assert (together <= total * (1 + 1e-3)).all()
    assert (together < total * 0.999).any(), "the terms of a random network do not align"
