"""Which neuron to split: scores of every open neuron from the relaxations it takes part in.

With a the tangent that meets an activation in the push of the bound, ``[l, u]`` the bounds of its cotangent and
``[s_l, s_u]`` its slopes:

* ``gap``: ``|a|`` times the chord's offset ``(s_u − s_l) u (−l)/(u − l)``, what the relaxation adds on both sides of
a split, and
  a tenth of ``width``, so that neurons whose cotangent keeps its sign come next;
* ``width``: ``|a| (s_u − s_l) max(|l|, |u|)``, all that the choice of the slope can change;
* ``area``: ``|a| (s_u − s_l)(u|u| − l|l|)/2``, the area between the extreme products, which is the published
heuristic (Shi et
  al., NeurIPS 2022, section 3.4).

``strong`` takes ``gap``'s four best and tries them out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lirpa_lip.jacobian.forward import Forward
from lirpa_lip.jacobian.tangents import Backward
from lirpa_lip.network.graph import NetworkGraph

#: ``(pre-activation node, flat index, split point)``
Choice = tuple[str, int, float]
#: How many candidates a domain remembers.
CANDIDATES = 4


def choices(
    graph: NetworkGraph, forward: Forward, result: Backward, trace: Mapping[str, Tensor], heuristic: str
) -> list[tuple[Choice, ...]]:
    """The best neurons to split for each domain of a batch, best first."""
    scores, points, names = [], [], []
    for node in graph.activations:
        if node.name not in trace or node.name not in result.cotangents:
            continue
        assert node.activation is not None
        parent = node.parents[0]
        slopes, (lower, upper) = forward.slopes[node.name], forward.intervals[parent]
        point = node.activation.split_point(lower, upper, *forward.split(parent))
        tangent = trace[node.name][:, :, 0].abs()
        score = _score(heuristic, tangent, slopes.high - slopes.low, *result.cotangents[node.name]).sum(1)
        usable = (slopes.low < slopes.high) & torch.isfinite(point)
        scores.append(torch.where(usable, score, 0.0).flatten(1))
        points.append(point.flatten(1))
        names += [(parent, i) for i in range(scores[-1].shape[1])]
    if not scores:
        return [()] * len(forward.empty)
    score, point = torch.cat(scores, 1), torch.cat(points, 1)
    best = score.topk(min(CANDIDATES, score.shape[1]), dim=1)
    found = []
    for k in range(len(score)):
        listed = zip(best.values[k].tolist(), best.indices[k].tolist())
        found.append(tuple((*names[i], float(point[k, i])) for value, i in listed if value > 0))
    return found


def _score(heuristic: str, tangent: Tensor, spread: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    spread = spread.unsqueeze(1)
    width = tangent * spread * torch.maximum(lower.abs(), upper.abs())
    if heuristic == "width":
        return width
    if heuristic == "area":
        return tangent * spread * (upper * upper.abs() - lower * lower.abs()) / 2
    crossing = (lower < 0) & (upper > 0)
    gap = torch.where(crossing, upper * -lower / torch.where(crossing, upper - lower, 1.0), 0.0)
    return tangent * spread * gap + 0.1 * width
