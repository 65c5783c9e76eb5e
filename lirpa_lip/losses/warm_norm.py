"""Estimates of masked norms for training: a power iteration that starts where the last step's ended.

One start vector per map, masked for each sample, in place of one per map and training image as in the published code:
no state grows with the data. Values approach the norm from below; they are for training and never for a certificate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lirpa_lip.local.linearised import StackedMap
from lirpa_lip.norms.linear_map import LinearMap

EVERY, FEW, MANY = 50, 8, 30  # how often, on how many samples and with how many iterations estimates are checked
BLOCK, SETTLED = 16, 10  # vectors kept of a norm that all samples share; iterations where nothing learns from it
SQUARINGS = 8  # of a Gram matrix: its 256th power leaves of a value 5 % below the largest 2e-6


def warm_norm(
    linear: LinearMap, start: Tensor, columns: Tensor | None = None, rows: Tensor | None = None, iterations: int = 1
) -> tuple[Tensor, Tensor]:
    """σ_b ≈ ‖(S_rows A S_columns)ᵀ u_b‖ with unit u_b from the power iteration, held fixed in the gradient.

    Args:
        linear: the map A, differentiable in its weights.
        start: (1, *in_shape).
        columns, rows: masks >= 0, (batch, *in_shape) and (batch, *out_shape), or None for ones.
        iterations: k ≥ 1 costs k applications of A and of Aᵀ each, of which the last Aᵀ is differentiated.

    Returns:
        σ (batch,), or (1,) where nothing depends on the sample; and the images (S_rows A S_columns)ᵀ u_b.
    """
    with torch.no_grad():
        fixed, v = linear.detach(), _times(start, columns)
        for _ in range(iterations - 1):
            v = _unit(_twice(fixed.adjoint(_twice(fixed.forward(v), rows)), columns))
        u = _times(fixed.forward(v), rows)
        u = _times(u / _size(u), rows)
    image = _times(linear.adjoint(u), columns)
    sigma = torch.linalg.vector_norm(image.flatten(1), dim=1)
    return sigma, image


def subspace_norm(
    linear: LinearMap, block: Tensor, columns: Tensor | None = None, rows: Tensor | None = None, iterations: int = 1
) -> tuple[Tensor, Tensor]:
    """σ ≈ ‖S_rows A S_columns‖ by subspace iteration: the largest value of the projected map (Rayleigh–Ritz).

    Of a layer that is nearly orthogonal, as certified training makes them, many singular values lie near the largest,
    and weights move faster than one vector turns from one to the next: the network learns what it overlooks. A block
    of k finds the best direction among k at once; its error falls with σ_{k+1} / σ_1 (Halko, Martinsson & Tropp, SIAM
    Review 2011, arXiv 0909.4061, §4.5).

    Args:
        linear: the map A, differentiable in its weights.
        block: (k, *in_shape), k no larger than either side of A.
        columns, rows: masks >= 0 that broadcast with one sample, or None for ones.
        iterations: each costs k applications of A and of Aᵀ.

    Returns:
        σ (1,), whose gradient holds the left vector fixed; and the block to start from next, of unit vectors.
    """
    with torch.no_grad():
        fixed = linear.detach()
        for _ in range(iterations):
            left = _orthonormal(_times(fixed.forward(_times(block, columns)), rows))
            images = _times(fixed.adjoint(_times(left, rows)), columns)
            block = _unit(images)
        turn = _leading(images.flatten(1))
        u = _times((turn @ left.flatten(1)).reshape(1, *linear.out_shape), rows)
    image = _times(linear.adjoint(u), columns)
    return torch.linalg.vector_norm(image.flatten(1), dim=1), block


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
        *,
        shared: bool = False,
    ) -> Tensor:
        """``warm_norm`` from vector ``index``, times what so few iterations fall short of on average.

        Args:
            shared: nothing depends on the sample, so that a whole `subspace_norm` costs less than a batch.
        """
        if shared or (columns is None and rows is None):
            return self._of_all(index, linear, columns, rows, iterations)
        start = self.vector(index, linear.in_shape, linear.dtype, linear.device)
        sigma, images = warm_norm(linear, start, columns, rows, iterations)
        self.keep(index, images)

        def refined() -> Tensor:
            few_columns, few_rows = (None if mask is None else mask[:FEW] for mask in (columns, rows))
            return warm_norm(linear.detach(), images[:FEW].detach(), few_columns, few_rows, MANY)[0]

        return sigma * self.shortfall(index, sigma, refined)

    def _of_all(
        self, index: int, linear: LinearMap, columns: Tensor | None, rows: Tensor | None, iterations: int
    ) -> Tensor:
        """``subspace_norm`` from block ``index``; nearly settled in eval mode, where it chooses and nothing learns."""
        count = min(BLOCK, linear.in_shape.numel(), linear.out_shape.numel())
        kept = self._start(f"block_{index}", index, torch.Size((count, *linear.in_shape)), linear.dtype, linear.device)
        steps = iterations if self.training else max(iterations, SETTLED)
        sigma, block = subspace_norm(linear, kept, columns, rows, steps)
        if self.training:
            kept.copy_(block)
        return sigma

    def vector(self, index: int, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The kept vector (1, *shape)."""
        return self._start(f"vector_{index}", index, torch.Size((1, *shape)), dtype, device)

    def _start(self, name: str, seed: int, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The kept unit vectors (k, *shape); random ones where the map has changed its shape since."""
        kept = self._buffers.get(name)
        if kept is not None and kept.shape == shape:
            return kept
        generator = torch.Generator().manual_seed(seed)
        start = _unit(torch.randn(shape, generator=generator, dtype=dtype).to(device))
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


class WarmNorms:
    """The norms of one pass (a `JointNorm`), in the order they are asked for: call n from kept vector n.

    Args:
        iterations: power iterations of a masked norm.
        refinements: fixed-point steps of a joint one.
        shared: whether masks, too, are the same for all samples.
    """

    def __init__(self, starts: WarmStarts, iterations: int, refinements: int = 1, shared: bool = False) -> None:
        self.starts, self.iterations, self.refinements, self.shared = starts, iterations, refinements, shared
        self.calls = 0

    def __call__(self, map_: LinearMap, mask_in: Tensor | None = None, mask_out: Tensor | None = None) -> Tensor:
        return self.starts.norm(self._next(), map_, mask_in, mask_out, self.iterations, shared=self.shared)

    def joint(self, map_: StackedMap, radii: Tensor) -> Tensor:
        """``max over unit u of Σ_j ‖M_jᵀ u‖ r_j``, ``(batch,)``, what the sources can do together.

        Improved from a kept start by the fixed-point step u ∝ Σ_j r_j M_j M_jᵀu / ‖M_jᵀu‖; u is held in the gradient.
        """
        index = self._next()
        kept = self.starts.vector(index, map_.out_shape, map_.dtype, map_.device)
        with torch.no_grad():
            u = _ascended(map_, radii, kept, self.refinements)
        self.starts.keep(index, u)
        quick = joint_rate(map_, u, radii)

        def refined() -> Tensor:
            few = map_.select(torch.arange(min(FEW, len(u)), device=u.device))
            return joint_rate(few, _ascended(few, radii[:FEW], u[:FEW], MANY), radii[:FEW])

        return quick * self.starts.shortfall(index, quick, refined)

    def _next(self) -> int:
        self.calls += 1
        return self.calls - 1


def _ascended(map_: StackedMap, radii: Tensor, u: Tensor, steps: int) -> Tensor:
    """Unit u (batch, *shape), ``steps`` fixed-point steps from a given one."""
    u = _unit(_times(u, map_.out_scale).expand(len(radii), *map_.out_shape))
    for _ in range(steps):
        parts = [_unit(a) * r.reshape(-1, *[1] * (a.ndim - 1)) for a, r in zip(map_.terms(u), radii.T, strict=True)]
        u = _unit(map_.combined(parts))
    return u


def joint_rate(map_: StackedMap, u: Tensor, radii: Tensor) -> Tensor:
    """``Σ_j ‖M_jᵀ u‖ r_j``, (batch,)."""
    norms = [torch.linalg.vector_norm(a.flatten(1), dim=1) for a in map_.terms(u)]
    return (torch.stack(norms, dim=1) * radii).sum(1)


def _times(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _twice(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else (x * mask).mul_(mask)


def _orthonormal(vectors: Tensor) -> Tensor:
    """Of (k, *shape) vectors, as many that are orthonormal and span them."""
    return torch.linalg.qr(vectors.flatten(1).T)[0].T.reshape(vectors.shape)


def _leading(images: Tensor) -> Tensor:
    """The unit row vector (1, k) whose combination of k images (k, n) is largest, where two are not about equal.

    By powers of their Gram matrix, which a GPU takes without the halt of a decomposition, and which keep NaN.
    """
    images = images / images.abs().max().clamp(min=torch.finfo(images.dtype).tiny)
    power = images @ images.T
    for _ in range(SQUARINGS):
        power = power / power.abs().max().clamp(min=torch.finfo(power.dtype).tiny)
        power = power @ power
    return _unit(power.index_select(0, power.diagonal().argmax().reshape(1)))


def _unit(x: Tensor) -> Tensor:
    return x / _size(x)


def _size(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    return norm.reshape(-1, *[1] * (x.ndim - 1))
