"""Convolutions and transposed convolutions, in one, two and three dimensions, as linear maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lirpa_lip.errors import ShapeError
from lirpa_lip.norms.maps.base import LinearMap, TensorFn

Ints = int | Sequence[int]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _tuple(value: Ints, length: int, name: str) -> tuple[int, ...]:
    result = (value,) * length if isinstance(value, int) else tuple(value)
    if len(result) != length:
        raise ShapeError(f"{name}={value!r} needs {length} numbers.")
    return result


class ConvMap(LinearMap):
    """A convolution with zero padding, without its bias; the number of spatial axes follows from the weight.

    Args:
        weight: ``(out_channels, in_channels / groups, *kernel)``.
        input_shape: ``(in_channels, *spatial)``.
        stride, padding, dilation, groups: as in ``torch.nn.functional.conv2d`` (numbers, not ``"same"``).
    """

    cheap_entries = homogeneous = True
    spatial_axes: int | None = None

    def __init__(
        self,
        weight: Tensor,
        input_shape: Sequence[int],
        stride: Ints = 1,
        padding: Ints = 0,
        dilation: Ints = 1,
        *,
        groups: int = 1,
    ) -> None:
        axes = self.spatial_axes or weight.ndim - 2
        if weight.ndim != axes + 2 or len(input_shape) != axes + 1 or 0 in weight.shape:
            raise ShapeError(
                f"{type(self).__name__}: weight {tuple(weight.shape)} and input shape {tuple(input_shape)} "
                f"must be (out, in / groups, *kernel) and (in, *spatial), with {axes} spatial axes, none empty."
            )
        if weight.shape[1] * groups != input_shape[0]:
            raise ShapeError(
                f"{type(self).__name__}: weight {tuple(weight.shape)} with groups={groups} "
                f"does not match {input_shape[0]} input channels."
            )
        self.weight, self.groups, self.axes = weight, groups, axes
        self.stride, self.padding = _tuple(stride, axes, "stride"), _tuple(padding, axes, "padding")
        self.dilation = _tuple(dilation, axes, "dilation")
        self.in_shape = torch.Size(input_shape)
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, weight.shape[2:], strict=True)]
        slack = [n + 2 * p - span for n, p, span in zip(self.in_shape[1:], self.padding, spans, strict=True)]
        if min(slack) < 0:
            raise ShapeError(f"{type(self).__name__}: the kernel is larger than the padded input {tuple(input_shape)}.")
        self.out_shape = torch.Size([weight.shape[0], *(s // t + 1 for s, t in zip(slack, self.stride, strict=True))])
        self.multiply_adds = self.out_shape.numel() * weight[0].numel()
        # Trailing inputs that no window reaches: the transposed convolution must be told of them.
        self.output_padding = tuple(s % t for s, t in zip(slack, self.stride, strict=True))

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def forward(self, x: Tensor) -> Tensor:
        conv = _CONV[self.axes]
        return conv(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)

    def adjoint(self, y: Tensor) -> Tensor:
        if self._turned_pays:
            # the turned kernel slides over y; nothing is scattered
            padding = [k - 1 - p for k, p in zip(self.weight.shape[2:], self.padding, strict=True)]
            turned = self.weight.transpose(0, 1).flip(*range(2, self.axes + 2))
            return _CONV[self.axes](y, turned, None, 1, padding)
        conv = _CONV_TRANSPOSE[self.axes]
        options = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return conv(y, self.weight, None, *options)

    @property
    def _turned_pays(self) -> bool:
        """Whether the adjoint is a convolution with the turned kernel, and faster so.

        PyTorch's float64 kernels on a CPU write every window out: of what a convolution reads, and of what a transposed
        one writes, with more work there. In other precisions there is nothing between the two.
        """
        plain = self.groups == 1 and all(n == 1 for n in (*self.stride, *self.dilation))
        fits = all(p < k for k, p in zip(self.weight.shape[2:], self.padding, strict=True))
        cheap = self.weight.shape[0] <= self.weight.shape[1] and self.weight.numel() <= self.in_numel
        return plain and fits and cheap and self.dtype == torch.float64 and self.device.type == "cpu"

    def with_weight(self, weight: Tensor) -> ConvMap:
        """The same windows with another kernel, which may have other numbers of channels."""
        shape = (weight.shape[1] * self.groups, *self.in_shape[1:])
        return type(self)(weight, shape, self.stride, self.padding, self.dilation, groups=self.groups)

    def rebuild(self, shared: TensorFn, per_sample: TensorFn) -> ConvMap:
        return self.with_weight(shared(self.weight))

    def abs(self) -> ConvMap:
        return self.with_weight(self.weight.abs())

    def square(self) -> ConvMap:
        return self.with_weight(self.weight.square())

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entry (o, i) is the weight at tap ``k = (i + padding - stride * o) / dilation``, where that is a tap."""
        out_index = torch.unravel_index(rows, self.out_shape)
        in_index = torch.unravel_index(columns, self.in_shape)
        out_channel, in_channel = out_index[0].unsqueeze(1), in_index[0].unsqueeze(0)
        per_group = self.weight.shape[1]
        valid = out_channel // (self.weight.shape[0] // self.groups) == in_channel // per_group
        flat = out_channel * per_group + in_channel % per_group
        for axis, taps in enumerate(self.weight.shape[2:]):
            offset = in_index[axis + 1] + self.padding[axis] - self.stride[axis] * out_index[axis + 1].unsqueeze(1)
            tap = offset.div(self.dilation[axis], rounding_mode="floor")
            valid = valid & (tap * self.dilation[axis] == offset) & (tap >= 0) & (tap < taps)
            flat = flat * taps + tap
        return torch.where(valid, self.weight.reshape(-1)[torch.where(valid, flat, 0)], 0.0)


class Conv1dMap(ConvMap):
    """`ConvMap` with one spatial axis."""

    spatial_axes = 1


class Conv2dMap(ConvMap):
    """`ConvMap` with two spatial axes."""

    spatial_axes = 2


class ConvTransposeMap(LinearMap):
    """A transposed convolution, without its bias: the adjoint of a `ConvMap`, cut or padded to its output shape.

    Args:
        weight: ``(in_channels, out_channels / groups, *kernel)``.
        input_shape: ``(in_channels, *spatial)``.
        stride, padding, output_padding, dilation, groups: as in ``torch.nn.functional.conv_transpose2d``.
    """

    cheap_entries = homogeneous = True
    spatial_axes: int | None = None

    def __init__(
        self,
        weight: Tensor,
        input_shape: Sequence[int],
        stride: Ints = 1,
        padding: Ints = 0,
        output_padding: Ints = 0,
        *,
        dilation: Ints = 1,
        groups: int = 1,
    ) -> None:
        axes = self.spatial_axes or weight.ndim - 2
        if weight.ndim != axes + 2 or len(input_shape) != axes + 1 or 0 in weight.shape:
            raise ShapeError(
                f"{type(self).__name__}: weight {tuple(weight.shape)} and input shape {tuple(input_shape)} "
                f"must be (in, out / groups, *kernel) and (in, *spatial), with {axes} spatial axes, none empty."
            )
        stride, padding = _tuple(stride, axes, "stride"), _tuple(padding, axes, "padding")
        output_padding, dilation = _tuple(output_padding, axes, "output_padding"), _tuple(dilation, axes, "dilation")
        sizes = zip(input_shape[1:], stride, padding, dilation, weight.shape[2:], output_padding, strict=True)
        spatial = [(n - 1) * s - 2 * p + d * (k - 1) + 1 + extra for n, s, p, d, k, extra in sizes]
        # The convolution reads the transposed one's output; more windows may fit in it than there are inputs.
        self.conv = ConvMap(weight, (weight.shape[1] * groups, *spatial), stride, padding, dilation, groups=groups)
        self.output_padding = output_padding
        self.in_shape, self.out_shape = torch.Size(input_shape), self.conv.in_shape
        self.multiply_adds = self.conv.multiply_adds
        if self.conv.out_shape[0] != self.in_shape[0]:
            raise ShapeError(
                f"{type(self).__name__}: weight {tuple(weight.shape)} does not match {input_shape[0]} input channels."
            )

    @property
    def axes(self) -> int:
        return self.conv.axes

    @property
    def dtype(self) -> torch.dtype:
        return self.conv.dtype

    @property
    def device(self) -> torch.device:
        return self.conv.device

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        options = (conv.stride, conv.padding, self.output_padding, conv.groups, conv.dilation)
        return _CONV_TRANSPOSE[conv.axes](x, conv.weight, None, *options)

    def adjoint(self, y: Tensor) -> Tensor:
        window = (slice(None), slice(None), *(slice(0, n) for n in self.in_shape[1:]))
        return self.conv.forward(y)[window]

    def _with_weight(self, weight: Tensor) -> ConvTransposeMap:
        conv = self.conv
        first = (weight, self.in_shape, conv.stride, conv.padding, self.output_padding)
        return type(self)(*first, dilation=conv.dilation, groups=conv.groups)

    def rebuild(self, shared: TensorFn, per_sample: TensorFn) -> ConvTransposeMap:
        return self._with_weight(shared(self.conv.weight))

    def abs(self) -> ConvTransposeMap:
        return self._with_weight(self.conv.weight.abs())

    def square(self) -> ConvTransposeMap:
        return self._with_weight(self.conv.weight.square())

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        # Flat indices of this map's input, re-read in the (possibly larger) output of the convolution.
        position = torch.stack(torch.unravel_index(columns, self.in_shape))
        strides = torch.tensor([self.conv.out_shape[i + 1 :].numel() for i in range(self.conv.axes + 1)])
        moved = (position * strides.to(position.device).unsqueeze(1)).sum(0)
        return self.conv.entries(moved, rows).mT


class ConvTranspose1dMap(ConvTransposeMap):
    """`ConvTransposeMap` with one spatial axis."""

    spatial_axes = 1


class ConvTranspose2dMap(ConvTransposeMap):
    """`ConvTransposeMap` with two spatial axes."""

    spatial_axes = 2
