"""
Neurons that drop out, layer by layer
=====================================

Bounds of every pre-activation over a ball say which ReLUs are linear there and which are constant.
"""

import torch

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.plots import neurons_by_layer

torch.manual_seed(1)
sizes = [20, 60, 60, 60]
layers = [part for a, b in zip(sizes, sizes[1:]) for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
model = torch.nn.Sequential(*layers).eval()
x = torch.randn(1, 20)

# %%
# The network up to each activation is bounded as any network is.
counts = {}
for depth in range(0, len(layers), 2):
    bounded = BoundedModule(model[: depth + 1], x)
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.3)),)
    lower, upper = bounded.compute_bounds(x=ball, method="local-lip")
    off, on = int((upper <= 0).sum()), int(((lower >= 0) & (upper > 0)).sum())
    counts[f"layer {depth // 2 + 1}"] = {"stable": on, "open": lower.numel() - on - off, "eliminated": off}
figure = neurons_by_layer(counts)
figure
