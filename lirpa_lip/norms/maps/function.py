"""Any linear torch function as a linear map; its adjoint comes from automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lirpa_lip.errors import ShapeError
from lirpa_lip.norms.maps.base import LinearMap, StructuralMap
from lirpa_lip.norms.maps.compose import ComposedMap
from lirpa_lip.norms.maps.diagonal import DiagonalMap


class FunctionMap(StructuralMap):
    """``x -> fn(x)`` for a linear function of a batch that treats its samples alike (pooling, padding, slicing, ...).

    Args:
        fn: ``(B, *in_shape) -> (B, *out_shape)``, linear, differentiable, the same for every dtype; it holds no
            tensors of its own.
        in_shape: shape of one input vector.
        dtype, device: what vectors the map is meant for.
        monomial: the caller vouches that each row has at most one nonzero entry (slice, pad, permute, upsample).
        entries_nonnegative: the caller vouches that no entry is negative.
    """

    def __init__(
        self,
        fn: Callable[[Tensor], Tensor],
        in_shape: Sequence[int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        monomial: bool = False,
        *,
        entries_nonnegative: bool = False,
    ) -> None:
        self.fn, self.in_shape = fn, torch.Size(in_shape)
        self._dtype, self._device = dtype or torch.get_default_dtype(), torch.device(device or "cpu")
        self.row_monomial, self.nonnegative = monomial, entries_nonnegative
        with torch.no_grad():
            out = fn(torch.zeros(1, *in_shape, dtype=self._dtype, device=self._device))
        if out.shape[:1] != (1,):
            raise ShapeError(f"FunctionMap: fn must keep the batch axis; one sample became {tuple(out.shape)}.")
        if out.count_nonzero():
            raise ShapeError("FunctionMap: fn(0) is not 0, so fn is not linear; leave out its constant part.")
        self.out_shape = out.shape[1:]
        self.column_monomial = monomial and self._one_per_column()

    @torch.no_grad()
    def _one_per_column(self) -> bool:
        """Whether a map with one nonzero per row also has at most one per column: count them by the adjoint."""
        value = self._row_values()
        counts = self.adjoint(torch.where(value != 0, 1 / torch.where(value != 0, value, 1), 0).unsqueeze(0))
        return bool((counts < 1.5).all())

    def _row_values(self) -> Tensor:
        """The one nonzero of each row of a row-monomial map: its row sums, ``(*out_shape)``."""
        return self.forward(torch.ones(1, *self.in_shape, dtype=self._dtype, device=self._device))[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)

    def adjoint(self, y: Tensor) -> Tensor:
        keep_graph = torch.is_grad_enabled() and y.requires_grad
        with torch.enable_grad():
            at = torch.zeros(y.shape[0], *self.in_shape, dtype=y.dtype, device=y.device, requires_grad=True)
            out = self.fn(at)
            return torch.autograd.grad(out, at, y.reshape(out.shape), create_graph=keep_graph)[0]

    def abs(self) -> LinearMap:
        if self.nonnegative or not self.row_monomial:
            return super().abs()
        return ComposedMap([DiagonalMap(self._row_values().sign(), self.out_shape), self])

    def support(self) -> LinearMap | None:
        return self.abs() if self.nonnegative or self.row_monomial else None

    def square(self) -> LinearMap:
        if not self.row_monomial:
            return super().square()
        return ComposedMap([DiagonalMap(self._row_values(), self.out_shape), self])
