"""A new operator from end to end: the squareplus activation, (z + √(z² + b)) / 2, in every bound of the package.

PyTorch would trace it as a power, a sum and a square root, for which there is no Lipschitz rule. Traced as one
operator it has a simple one: its derivative lies between 0 and 1 and rises. docs/extending.md explains each step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.activations.smooth import Smooth
from lirpa_lip.network.adapters.activations import simple
from lirpa_lip.wrapping.registration import register_operator

B = 0.25


def squareplus(z: Tensor) -> Tensor:
    return (z + (z * z + B).sqrt()) / 2


# 1. What the bounds need to know: the function, its derivative, and where either takes its extremes inside an interval
#    (nowhere: both rise).
def record() -> Smooth:
    """``(z + √(z² + b)) / 2``."""
    return Smooth(squareplus, lambda z: (1 + z / (z * z + B).sqrt()) / 2)


# 2. An adapter emits the record as a node of the graph; one for functions without attributes is made already. With it
#    both sides learn the operator: our graph, and auto_LiRPA (forward, IBP, CROWN, α-CROWN).
ADAPTER = simple(record)
register_operator("example::Squareplus", ADAPTER, elementwise=True)


# 3. The torch module: plain operations in normal use, a single operator when a model is traced.
class _Squareplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        return squareplus(z)

    @staticmethod
    def symbolic(g, z):
        return g.op("example::Squareplus", z).setType(z.type())


class Squareplus(nn.Module):
    """The activation, (batch, *shape) -> (batch, *shape)."""

    def forward(self, z: Tensor) -> Tensor:
        return _Squareplus.apply(z) if torch.jit.is_tracing() else squareplus(z)


def main() -> dict[str, tuple[Tensor, Tensor]]:
    """Bounds of a small network over an ℓ₂ ball by several methods, beside what sampling finds."""
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(1, 4, 3, padding=1), Squareplus(), nn.Conv2d(4, 4, 3, stride=2), Squareplus())
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(36, 3)).eval()
    x, eps = torch.rand(2, 1, 8, 8), 0.5
    bounded = BoundedModule(model, x)
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)

    step = torch.randn(2000, *x.shape)
    points = x + eps * step / step.flatten(2).norm(dim=2)[..., None, None, None]
    with torch.no_grad():
        values = model(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    found = {"sampled": (values.amin(0), values.amax(0))}
    for method in ("ibp", "crown", "local-lip", "local-lip-crown"):
        found[method] = tuple(t.detach() for t in bounded.compute_bounds(x=ball, method=method))

    print(f"{'method':16} mean width of the output's bounds")
    for method, (lower, upper) in found.items():
        print(f"{method:16} {(upper - lower).mean():.4f}")
    lipschitz = bounded.local_lipschitz(x=ball)
    print(f"local Lipschitz constant of the first image: {lipschitz.lower[0]:.4f} ... {lipschitz.upper[0]:.4f}")
    return found


if __name__ == "__main__":
    main()
