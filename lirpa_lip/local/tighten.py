"""Pre-activations bounded again, neuron by neuron, by composed rows around the centre."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.local.deviation import Deviation
from lirpa_lip.local.layers import Layers
from lirpa_lip.local.limit import is_late
from lirpa_lip.network.graph import NetworkGraph, Node
from lirpa_lip.network.node import Interval
from lirpa_lip.regions.region import Region

#: Most elements of one batch of composed rows (rows × widest layer): about what caches hold.
_ROW_ELEMENTS = 1 << 20


def composed_interval(
    graph: NetworkGraph, node: Node, interval: Interval, value: Tensor, *, layers: Layers, region: Region
) -> Interval:
    """Bounds of the neurons whose sign is open, again, by composed rows around the centre.

    Of a network of products of all neurons: of a square, or of a factor, the width counts whatever its sign.
    """
    lower, upper = (t.flatten(1).clone() for t in interval)
    open_ = lower < upper if graph.has_products else (lower < 0) & (upper > 0)
    most = int(open_.sum(1).max())
    if most == 0:
        return interval
    index = open_.to(torch.int8).topk(most, dim=1).indices
    batch, neurons = lower.shape
    chunk = max(1, _ROW_ELEMENTS // (batch * max(n.shape.numel() for n in graph)))
    deviation = Deviation(graph, layers, region)
    lows, highs = [], []
    for part in index.split(chunk, dim=1):
        if is_late():
            lows.append(torch.full_like(part, -torch.inf, dtype=lower.dtype))
            highs.append(-lows[-1])
            continue
        rows = torch.zeros(batch, part.shape[1], neurons, dtype=graph.dtype, device=graph.device)
        rows.scatter_(2, part.unsqueeze(2), 1.0)
        rows = rows.reshape(batch, -1, *node.shape)
        lows.append(-deviation.upper(node.name, -rows))
        highs.append(deviation.upper(node.name, rows))
    at = value.flatten(1).gather(1, index)
    low, high = at + torch.cat(lows, 1), at + torch.cat(highs, 1)
    lower = lower.scatter(1, index, torch.maximum(lower.gather(1, index), low))
    upper = upper.scatter(1, index, torch.minimum(upper.gather(1, index), high))
    return lower.reshape(interval[0].shape), upper.reshape(interval[1].shape)
