"""The published training step, rendered anew for timing: one start vector per layer *and training image*.

What it costs is what Huang et al.'s published code (arXiv 2111.01395) does each step: intervals with gradients over the
global radius, power iterations from the stored vectors of the batch's images, which are then stored again, and the
ball ∩ box maximum for all pairs of classes. Differentiated as there: through the last product only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.stages import masks_of, stages_of
from lirpa_lip.losses.ball_box import worst_case_increase


class PublishedStep(nn.Module):
    """Worst-case logits of a sequential network, from vectors stored per image.

    Args:
        model: sequential network.
        sample: an input.
        images: how many training images there are.
        iterations: power iterations per layer and step (5 for MNIST, 2 for CIFAR-10).
    """

    def __init__(self, model: nn.Module, sample: Tensor, images: int, iterations: int) -> None:
        super().__init__()
        self._model, self._stages, self.iterations = (model,), stages_of(model, sample), iterations
        shapes = [stage.layers[0][1] for stage in self._stages[:-1]]
        self.table = [torch.randn(images, *shape) for shape in shapes]
        self.shared = [torch.randn(1, *shape, device=sample.device) for shape in shapes]

    @property
    def stored_floats_per_image(self) -> int:
        return sum(rows[0].numel() for rows in self.table)

    def forward(self, x: Tensor, eps: float, labels: Tensor, index: Tensor) -> Tensor:
        """Worst-case logits (batch, classes)."""
        radius, rate, columns = eps, torch.ones(len(x), device=x.device), None
        centre, lower, upper = x, x - eps, x + eps
        for k, stage in enumerate(self._stages[:-1]):
            linear = stage.linear_map()
            centre = stage.apply(centre)
            middle, width = stage.apply((lower + upper) / 2), linear.abs().forward((upper - lower) / 2)
            reach = linear.row_norms() * radius
            lower, upper = torch.maximum(middle - width, centre - reach), torch.minimum(middle + width, centre + reach)
            rows, following = masks_of(stage.activation, lower, upper)
            start = self.table[k][index].to(x.device)
            sigma, vectors = self._iterate(linear, start, columns, rows)
            self.table[k][index] = vectors.cpu()
            whole, self.shared[k] = self._iterate(linear, self.shared[k], None, None)
            radius, rate, columns = radius * whole, rate * sigma, following
            lower, upper, centre = (stage.activation(t) for t in (lower, upper, centre))
        logits = self._stages[-1].apply(centre)
        weight = self._stages[-1].linear_map().adjoint(torch.eye(logits.shape[1], device=x.device)).flatten(1)
        low, high = (lower - centre).flatten(1), (upper - centre).flatten(1)
        # All pairs, of which the published code then uses the label's.
        every = [
            worst_case_increase(weight, torch.full_like(labels, c), eps * rate, low, high, iterations=10)
            for c in range(logits.shape[1])
        ]
        return logits + torch.stack(every, dim=1)[torch.arange(len(x)), labels]

    def _iterate(self, linear, u: Tensor, columns: Tensor | None, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for _ in range(self.iterations):
                v = _unit(_times(linear.forward(_times(u, columns)), rows))
                u = _unit(_times(linear.adjoint(v), columns))
        sigma = (v * _times(linear.forward(_times(u, columns)), rows)).flatten(1).sum(1)
        return sigma, u


def _times(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _unit(x: Tensor) -> Tensor:
    return x / (x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1)) + 1e-12)
