"""auto_LiRPA's view of ``+ − × ÷`` with a constant, and of a concatenation that holds one.

auto_LiRPA carries coefficients of the constant to the place where it sums them up, and takes the constant's axes for
those of the samples there: with a batch as large as the constant it computes something else, with any other it fails.
Here the constant gets no coefficients. Its part goes into the bound's constant at once; with convolution patches
through the patches' own windows, whose padding is zero, so that a convolution with padding stays valid behind it.
"""

from __future__ import annotations

from typing import Any

import torch
from auto_LiRPA import bound_ops
from auto_LiRPA.bound_ops import Bound
from auto_LiRPA.linear_bound import LinearBound
from auto_LiRPA.patches import Patches
from torch import Tensor

from lirpa_lip.errors import UnsupportedOperatorError
from lirpa_lip.network.emit import constant_value, depends_on_input
from lirpa_lip.wrapping.coefficients import dense, unfold

Interval = tuple[Tensor, Tensor]
Sides = tuple[Any, Any]
_NONE: Sides = (None, None)


class ConstantOperand:
    """``y = factor · x + shift``, elementwise and broadcast; to be put before auto_LiRPA's class of the operator."""

    knows_patches = True
    inputs: list[Bound]
    output_shape: torch.Size
    name: str
    mode: str

    def __init__(self, attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> None:
        super().__init__(attr, inputs, output_index, options)  # type: ignore[call-arg]
        self.operand = [depends_on_input(bound) for bound in self.inputs].index(True)
        self.mode = (options or {}).get("conv_mode", "matrix")
        self.requires_input_bounds: list[int] = []

    def forward(self, *x: Tensor) -> Tensor:
        return super().forward(*_alike(self, x, self.operand))  # type: ignore[misc]

    def affine(self, constant: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(factor, shift), ``None`` for 1 and 0."""
        raise NotImplementedError

    def _affine(self, like: Tensor, batch: int) -> tuple[Tensor | None, Tensor | None]:
        value = constant_value(self.inputs[1 - self.operand]).to(like.dtype)
        return self.affine(_for_samples(self, value, torch.Size([batch, *self.output_shape[1:]])))

    def _is_perturbed(self) -> bool:
        """Whether the constant is a parameter that itself has a region, which auto_LiRPA alone knows to bound."""
        return self.inputs[1 - self.operand].perturbed

    def interval_propagate(self, *v: Interval) -> Interval:
        if self._is_perturbed():
            return super().interval_propagate(*v)  # type: ignore[misc]
        ends = [self.forward(*(pair[side] for pair in v)) for side in (0, 1)]  # type: ignore[attr-defined]
        return torch.minimum(*ends), torch.maximum(*ends)

    def bound_backward(self, last_lA: Any, last_uA: Any, *x: Bound, **options: Any):
        if self._is_perturbed():
            return super().bound_backward(last_lA, last_uA, *x, **options)  # type: ignore[misc]
        shape = x[self.operand].output_shape
        if len(shape) != len(self.output_shape):
            reason = "the constant has more axes than the value it meets, which moves the batch axis"
            raise UnsupportedOperatorError(self.name, type(self).__name__, reason=reason)
        (lA, lower_bias), (uA, upper_bias) = (self._one_side(A, shape[1:]) for A in (last_lA, last_uA))
        pairs = [_NONE, _NONE]
        pairs[self.operand] = (lA, uA)
        return pairs, lower_bias, upper_bias

    def _one_side(self, A: Any, shape: torch.Size):
        if A is None:
            return None, 0
        if shape != self.output_shape[1:]:
            A = dense(A, self.output_shape[1:])
        entries = _entries(A)
        factor, shift = self._affine(entries, entries.shape[1])
        bias = 0 if shift is None else constant_part(A, shift, self.output_shape[1:])
        if factor is not None:
            A = _scaled(A, factor, self.output_shape[1:])
        return (A if isinstance(A, Patches) else _summed(A, shape)), bias

    def bound_forward(self, dim_in: int, *x: LinearBound) -> LinearBound:
        if self._is_perturbed():
            return super().bound_forward(dim_in, *x)  # type: ignore[misc]
        bound = x[self.operand]
        factor, shift = self._affine(bound.lb, len(bound.lb))
        lower, upper = (bound.lw, bound.lb), (bound.uw, bound.ub)
        if factor is not None:
            wide = [(_weights(w, b * torch.ones_like(factor)), b) for w, b in (lower, upper)]
            up, down = factor.clamp(min=0), factor.clamp(max=0)
            lower, upper = (
                (_plus(_times(up, own[0]), _times(down, other[0])), up * own[1] + down * other[1])
                for own, other in (wide, wide[::-1])
            )
        if shift is not None:
            lower, upper = (((_weights(w, b + shift)), b + shift) for w, b in (lower, upper))
        return LinearBound(*lower, *upper)


def _alike(node: Any, x: tuple[Tensor, ...], operand: int) -> tuple[Tensor, ...]:
    """The operands of a forward pass, constants laid out for as many samples as the values."""
    return tuple(v if depends_on_input(b) else _for_samples(node, v, x[operand].shape) for v, b in zip(x, node.inputs))


def _for_samples(node: Any, value: Tensor, shape: torch.Size) -> Tensor:
    """A constant that holds one row per sample of the trace, for the samples of ``shape``.

    The exporter makes ``ones(len(x), 2)`` a constant of as many rows as it traced, all of them alike.

    Raises:
        UnsupportedOperatorError: it has rows for another number of samples, and they differ.
    """
    if not isinstance(value, Tensor) or value.ndim < len(shape) or value.shape[0] in (1, shape[0]):
        return value
    if value.ndim > len(shape) or not bool((value == value[:1]).all()):
        reason = (
            f"its constant has a row for each of {value.shape[0]} samples and the batch holds {shape[0]}; wrap the "
        )
        raise UnsupportedOperatorError(
            node.name, type(node).__name__, reason=reason + "model with an input of the batch size it is called with"
        )
    return value[:1]


def constant_part(A: Any, value: Tensor, shape: torch.Size) -> Tensor:
    """``A · value`` for a constant that broadcasts to ``(batch, *shape)``, laid out as biases of these coefficients."""
    image = _samples(value, shape)
    if isinstance(A, Patches):
        return (A.patches * unfold(image[None], A)).sum(dim=(-3, -2, -1))
    return (A * image).flatten(2).sum(2)


def _samples(value: Tensor, shape: torch.Size) -> Tensor:
    """``(batch or 1, *shape)``: the axis of the samples is the first of a constant with as many axes as a value."""
    batch = value.shape[0] if value.ndim > len(shape) else 1
    return value.expand(batch, *shape)


def _scaled(A: Any, factor: Tensor, shape: torch.Size):
    if not isinstance(A, Patches):
        return A * _samples(factor, shape)
    if factor.ndim < 2 or (factor.shape[-2:] == (1, 1) and factor[..., 0, 0].numel() == factor.shape[-3:-2].numel()):
        if factor.ndim == 0 or factor.numel() == 1:
            return A.create_similar(A.patches * factor.reshape(()))
        if factor.ndim >= 3:  # one number per channel needs no windows
            return A.create_similar(A.patches * factor.reshape(-1, 1, 1))
    return A.create_similar(A.patches * unfold(_samples(factor, shape)[None], A))


def _summed(A: Tensor, shape: torch.Size) -> Tensor:
    """Coefficients of a value that was broadcast along axes of length 1."""
    axes = [i + 2 for i, (was, now) in enumerate(zip(shape, A.shape[2:], strict=True)) if was != now]
    return A.sum(axes, keepdim=True) if axes else A


def _weights(w: Tensor | None, like: Tensor) -> Tensor | None:
    return None if w is None else w.expand(*w.shape[:2], *like.shape[1:])


def _times(factor: Tensor, w: Tensor | None) -> Tensor | None:
    """Weights ``(batch, inputs, *shape)`` times a factor that broadcasts to ``(batch, *shape)``."""
    return None if w is None else w * (factor.unsqueeze(1) if factor.ndim == w.ndim - 1 else factor)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a + b


class BoundAdd(ConstantOperand, bound_ops.BoundAdd):
    """x + b."""

    def affine(self, constant: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return None, constant


class BoundSub(ConstantOperand, bound_ops.BoundSub):
    """x − b, or b − x."""

    def affine(self, constant: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return (None, -constant) if self.operand == 0 else (constant.new_tensor(-1.0), constant)


class BoundMul(ConstantOperand, bound_ops.BoundMul):
    """x · b."""

    def affine(self, constant: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return constant, None


class BoundDiv(ConstantOperand, bound_ops.BoundDiv):
    """x ÷ b."""

    def affine(self, constant: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return constant.reciprocal(), None

    def forward(self, *x: Tensor) -> Tensor:
        x, y = _alike(self, x, self.operand)
        return x / y


class BoundConcat(bound_ops.BoundConcat):
    """A concatenation of values and constants."""

    def forward(self, *x: Tensor) -> Tensor:
        operand = [depends_on_input(bound) for bound in self.inputs].index(True)
        like = x[operand]
        alike = _alike(self, x, operand)
        rows = (v if v.ndim < like.ndim or len(v) == len(like) else v.expand(len(like), *v.shape[1:]) for v in alike)
        return super().forward(*rows)

    def bound_backward(self, last_lA: Any, last_uA: Any, *x: Bound, **_: Any):
        axis, sizes = self.make_axis_non_negative(self.axis, "output"), [bound.output_shape for bound in x]
        if axis == 0:
            raise UnsupportedOperatorError(self.name, "BoundConcat", reason="it concatenates samples, not values")
        lengths = [size[axis if len(size) == len(self.output_shape) else axis - 1] for size in sizes]
        pairs: list[list[Any]] = [[None, None] for _ in x]
        biases: list[Any] = [0, 0]
        for side, A in enumerate((last_lA, last_uA)):
            if A is None:
                continue
            if isinstance(A, Patches) and axis != 1:
                A = dense(A, self.output_shape[1:])
            for i, part in enumerate(_split(A, lengths, axis)):
                if x[i].perturbed:
                    pairs[i][side] = part
                    continue
                shape = torch.Size([*self.output_shape[1:axis], lengths[i], *self.output_shape[axis + 1 :]])
                entries = _entries(part)
                value = _for_samples(self, constant_value(x[i]), torch.Size([entries.shape[1], *shape]))
                value = value.to(entries.dtype)
                biases[side] = biases[side] + constant_part(part, value, shape)
        return [tuple(pair) for pair in pairs], *biases


def _entries(A: Any) -> Tensor:
    """The numbers of coefficients; their second axis is that of the samples."""
    return A.patches if isinstance(A, Patches) else A


def _split(A: Any, lengths: list[int], axis: int) -> list:
    if isinstance(A, Patches):
        return [A.create_similar(part.contiguous()) for part in A.patches.split(lengths, dim=-3)]
    return list(A.split(lengths, dim=axis + 1))


def meets_a_constant(inputs: list[Bound]) -> bool:
    """Whether some, not all, of the inputs depend on the network's input."""
    return len({depends_on_input(bound) for bound in inputs}) == 2
