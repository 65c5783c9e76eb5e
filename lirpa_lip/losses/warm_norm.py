"""Estimates of masked norms for training: a power iteration that starts where the last step's ended.

One start vector per map, masked for each sample, in place of one per map and training image as in the published code:
no state grows with the data. Values approach the norm from below; they are for training and never for a certificate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lirpa_lip.norms.linear_map import LinearMap

EVERY, FEW, MANY = 50, 8, 30  # how often, on how many samples and with how many iterations estimates are checked


def warm_norm(
    linear: LinearMap, start: Tensor, columns: Tensor | None = None, rows: Tensor | None = None, iterations: int = 1
) -> tuple[Tensor, Tensor]:
    """σ_b ≈ ‖(S_rows A S_columns)ᵀ u_b‖ with unit u_b from the power iteration, held fixed in the gradient.

    Args:
        linear: the map A, differentiable in its weights.
        start: (1, *in_shape).
        columns, rows: masks (batch, *in_shape) and (batch, *out_shape), or None for ones.
        iterations: k ≥ 1 costs k applications of A and of Aᵀ each, of which the last Aᵀ is differentiated.

    Returns:
        σ (batch,), or (1,) where nothing depends on the sample; and the images (S_rows A S_columns)ᵀ u_b.
    """
    with torch.no_grad():
        fixed, v = linear.detach(), _times(start, columns)
        for _ in range(iterations - 1):
            v = _unit(_times(fixed.adjoint(_times(fixed.forward(v), rows)), columns))
        u = _unit(_times(fixed.forward(v), rows))
    image = _times(linear.adjoint(u), columns)
    sigma = torch.linalg.vector_norm(image.flatten(1), dim=1)
    return sigma, image


class WarmStarts(nn.Module):
    """Start vectors as buffers, so that they are saved with a run, moved with a module and shared by processes.

    Vector ``index`` is made at its first use, from a generator of its own; make all of them before a checkpoint is
    loaded. While training, vectors move on; in eval mode they stay.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, int] = {}  # as the buffers have them; to read those would halt a GPU at every norm

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._calls.clear()

    def norm(
        self,
        index: int,
        linear: LinearMap,
        columns: Tensor | None = None,
        rows: Tensor | None = None,
        iterations: int = 1,
    ) -> Tensor:
        """``warm_norm`` from vector ``index``, times what so few iterations fall short of on average."""
        start = self.vector(index, linear.in_shape, linear.dtype, linear.device)
        sigma, images = warm_norm(linear, start, columns, rows, iterations)
        self.keep(index, images)
        if columns is None and rows is None:
            return sigma  # nothing depends on the sample: the kept vector itself converges

        def refined() -> Tensor:
            few_columns, few_rows = (None if mask is None else mask[:FEW] for mask in (columns, rows))
            return warm_norm(linear.detach(), images[:FEW].detach(), few_columns, few_rows, MANY)[0]

        return sigma * self.shortfall(index, sigma, refined)

    def vector(self, index: int, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The kept vector (1, *shape); a random one where the map has changed its shape since."""
        name, whole = f"vector_{index}", (1, *shape)
        kept = self._buffers.get(name)
        if kept is not None and kept.shape == whole:
            return kept
        generator = torch.Generator().manual_seed(index)
        start = torch.randn(whole, generator=generator, dtype=dtype).to(device)
        start = start / start.norm()
        if kept is None:
            self.register_buffer(name, start)
        return start

    @torch.no_grad()
    def shortfall(self, index: int, quick: Tensor, refined: Callable[[], Tensor]) -> Tensor:
        """How many times too small the quick estimates are on average, a scalar ≥ 1.

        Measured while training, at calls 0, 1, 2, 4, 8 … and then every ``EVERY`` calls, on the batch's first samples.
        Without it a network learns what few iterations overlook.

        Args:
            quick: (batch,) estimates of few iterations.
            refined: gives those of many, for the first ``FEW`` samples.
        """
        name = f"shortfall_{index}"
        if name not in self._buffers:
            self.register_buffer(name, torch.tensor([1.0, 0.0], dtype=quick.dtype, device=quick.device))
        factor, calls = self.get_buffer(name)
        if self.training:
            count = self._calls.get(index)
            count = int(calls) if count is None else count
            # often at first, while the kept vectors still improve from call to call: at 0, 1, 2, 4, 8 …
            if count % EVERY == 0 or (count < EVERY and count & (count - 1) == 0):
                many, few = refined().sum(), quick[:FEW].sum()
                factor.copy_(
                    torch.where(few > 0, many / few.clamp(min=torch.finfo(few.dtype).tiny), 1.0).clamp(min=1.0)
                )
            calls += 1
            self._calls[index] = count + 1
        return factor.clone()

    @torch.no_grad()
    def keep(self, index: int, images: Tensor) -> None:
        """While training: the direction of the batch's vectors (batch, *shape), signs aligned with the one before.

        Where they cancel, or have another shape, the one before stays.
        """
        kept = self.get_buffer(f"vector_{index}")
        if not self.training or images.shape[1:] != kept.shape[1:]:
            return
        flat, before = images.flatten(1), kept.flatten()
        mean = torch.sign(flat @ before) @ flat
        norm, tiny = mean.norm(), torch.finfo(mean.dtype).tiny
        kept.copy_(torch.where(norm > tiny, mean / norm.clamp(min=tiny), before).reshape(kept.shape))


def _times(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _unit(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    return x / norm.reshape(-1, *[1] * (x.ndim - 1))
