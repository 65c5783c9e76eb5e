"""One batch of masked operators, checked and made ready for a solver."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError, NonFiniteError, ShapeError
from lirpa_lip.norms.kernels.registry import backend
from lirpa_lip.norms.linear_map import ConvMap, ConvTransposeMap, DenseMap, LinearMap, MaskedMap
from lirpa_lip.norms.stencil_gram import StencilGram, stencil_pays


class SingularPair(NamedTuple):
    """``left`` (B, *out_shape), ``right`` (B, *in_shape), ``sigma`` (B,); zeros of a vector that is 0."""

    left: Tensor
    right: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Problem:
    """The operators ``A_b = diag(mask_out[b]) A diag(mask_in[b])`` of B samples, cut from the autograd graph.

    Iterations run on the smaller of ``AᵀA`` and ``AAᵀ``, called the Gram operator G, which acts on flat vectors of
    length `numel`. Write ``B`` for A or Aᵀ, so that ``G = BᵀB`` in either case; `outer` is the mask on that side, and
    `inner` the mask on the other.

    Attributes:
        map: the map A, shared or per sample.
        size: number of samples.
        mask_in, mask_out: ``(B, *shape)`` or ``None`` for ones.
        stencil: G without `outer`, where another way than the map itself is faster.
        magnitudes: exponents of the largest entries of the map's tensors and of the masks, where they were measured.
    """

    map: LinearMap
    size: int
    mask_in: Tensor | None = None
    mask_out: Tensor | None = None
    stencil: StencilGram | None = None
    magnitudes: tuple[int, ...] = ()

    @property
    def on_input(self) -> bool:
        """Whether G is AᵀA."""
        return self.map.in_numel <= self.map.out_numel

    @property
    def numel(self) -> int:
        return min(self.map.in_numel, self.map.out_numel)

    @cached_property
    def channels_last(self) -> bool:
        """Whether flat vectors hold an image's channels side by side, which float32 convolutions run faster on."""
        convolution = isinstance(self.map, ConvMap | ConvTransposeMap) and self.map.axes == 2
        return convolution and self.map.dtype != torch.float64

    def flat(self, tensor: Tensor) -> Tensor:
        """``(B, *shape) -> (B, numel)``, in the order of the problem's flat vectors."""
        return tensor.permute(0, 2, 3, 1).flatten(1) if self.channels_last else tensor.flatten(1)

    def shaped(self, vector: Tensor, shape: torch.Size) -> Tensor:
        """``(B, numel) -> (B, *shape)``, the reverse."""
        if not self.channels_last:
            return vector.reshape(-1, *shape)
        return vector.reshape(-1, shape[1], shape[2], shape[0]).permute(0, 3, 1, 2)

    @cached_property
    def outer(self) -> Tensor | None:
        """``(B, numel)``, flat."""
        mask = self.mask_in if self.on_input else self.mask_out
        return None if mask is None else self.flat(mask)

    @cached_property
    def inner(self) -> Tensor | None:
        """``(B, *shape of the other side)``."""
        mask = self.mask_out if self.on_input else self.mask_in
        return mask.contiguous(memory_format=torch.channels_last) if mask is not None and self.channels_last else mask

    @cached_property
    def inner_square(self) -> Tensor | None:
        """``inner^2``; the same tensor where it is 0/1."""
        if self.inner is None:
            return None
        square = self.inner * self.inner
        return self.inner if torch.equal(square, self.inner) else square

    def with_stencil(self) -> Problem:
        """The same problem with G as a stencil, where that is the faster way for more than a few steps."""
        if not stencil_pays(self.map, self.on_input):
            return self
        assert isinstance(self.map, ConvMap)
        return replace(self, stencil=StencilGram(self.map, self.on_input, self.inner_square))

    def gram_without_last_mask(self, x: Tensor) -> Tensor:
        """``(B, numel) -> (B, numel)``: G x but for the last multiplication by `outer`."""
        if type(self.map) is DenseMap:  # a subclass may apply itself in another way
            product = backend(x.device).masked_matmul
            weight = self.map.weight if self.on_input else self.map.weight.mT
            # The inner mask on both products: together its square, and both may skip what is eliminated.
            return product(product(x, weight, self.outer, self.inner), weight.mT, self.inner, None)
        x = x if self.outer is None else x * self.outer
        if self.stencil is not None:
            return self.stencil.apply(x)
        if self.on_input:
            return self.flat(self.map.adjoint(self._inner_masked(self.map.forward(self.shaped(x, self.map.in_shape)))))
        return self.flat(self.map.forward(self._inner_masked(self.map.adjoint(self.shaped(x, self.map.out_shape)))))

    def _inner_masked(self, y: Tensor) -> Tensor:
        if self.inner_square is None:
            return y
        # A convolution's result is its own; that of other maps may be a view of what they were given.
        fresh = isinstance(self.map, ConvMap | ConvTransposeMap)
        return y.mul_(self.inner_square) if fresh else y * self.inner_square

    def gram(self, x: Tensor) -> Tensor:
        """The Gram operator on flat vectors, ``(B, numel) -> (B, numel)``."""
        z = self.gram_without_last_mask(x)
        return z if self.outer is None else z * self.outer

    def active(self) -> Tensor:
        """``(B, numel)``, boolean: coordinates which G does not annihilate by its masks."""
        if self.outer is None:
            return torch.ones(self.size, self.numel, dtype=torch.bool, device=self.map.device)
        return self.outer != 0

    def start_vector(self, start: Tensor) -> Tensor:
        """A start given on the input side, ``(B or 1, *in_shape)``, in the space of G, ``(B, numel)``."""
        start = start.detach().to(self.map.dtype).reshape(-1, *self.map.in_shape)
        start = start.expand(self.size, *self.map.in_shape)
        image = start if self.mask_in is None else start * self.mask_in
        if not self.on_input:
            image = self.map.forward(image)
            image = image if self.mask_out is None else image * self.mask_out
        return self.flat(image)

    def singular_pair(self, vector: Tensor) -> SingularPair:
        """Left and right unit vectors from a vector of G's space, and the singular value ``|A v|`` they show.

        Args:
            vector: ``(B, numel)``.
        """
        one = unit(vector)
        one = one if self.outer is None else one * (self.outer != 0)
        if self.on_input:
            right = self.shaped(one, self.map.in_shape)
            image = self.map.forward(right if self.mask_in is None else right * self.mask_in)
            image = image if self.mask_out is None else image * self.mask_out
            sigma = image.flatten(1).norm(dim=1)
            return SingularPair(unit(image), right, sigma)
        left = self.shaped(one, self.map.out_shape)
        image = self.map.adjoint(left if self.mask_out is None else left * self.mask_out)
        image = image if self.mask_in is None else image * self.mask_in
        sigma = image.flatten(1).norm(dim=1)
        return SingularPair(left, unit(image), sigma)

    def select(self, index: Tensor) -> Problem:
        """The sub-batch at a 1-D index tensor."""
        mask_in, mask_out = (None if mask is None else mask[index] for mask in (self.mask_in, self.mask_out))
        stencil = None if self.stencil is None else self.stencil.select(index)
        return Problem(self.map.select(index), len(index), mask_in, mask_out, stencil)

    def bare(self) -> Problem:
        """The same problem, without what was derived from the masks, and where it will be derived apart."""
        return replace(self)

    def forget(self) -> None:
        """Frees what was derived from the masks; it is derived anew where it is needed again."""
        for name in ("outer", "inner", "inner_square"):
            self.__dict__.pop(name, None)

    def to(self, dtype: torch.dtype) -> Problem:
        """The same operators in another precision."""
        if dtype == self.map.dtype:
            return self
        masks = [None if mask is None else mask.to(dtype) for mask in (self.mask_in, self.mask_out)]
        return Problem(self.map.to(dtype), self.size, masks[0], masks[1])


def unit(tensor: Tensor) -> Tensor:
    """Each sample scaled to norm one; zeros stay zeros."""
    norm = tensor.flatten(1).norm(dim=1)
    inverse = torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1), 0)
    return tensor * inverse.reshape(-1, *[1] * (tensor.ndim - 1))


def prepare(linear_map: LinearMap, mask_in: Tensor | None, mask_out: Tensor | None) -> tuple[LinearMap, Problem]:
    """Check the input; return the masked map with its graph, and the problem without.

    Raises:
        ShapeError: a mask does not fit the map, batch sizes differ, or the map is empty.
        NonFiniteError: weights or masks hold NaN or infinity.
        ConfigError: a mask is negative.
    """
    if not isinstance(linear_map, LinearMap):
        raise ShapeError(f"expected a LinearMap, got {type(linear_map).__name__}; wrap a matrix as DenseMap(weight).")
    if 0 in (linear_map.in_numel, linear_map.out_numel):
        raise ShapeError(f"the map {tuple(linear_map.in_shape)} -> {tuple(linear_map.out_shape)} is empty.")
    if isinstance(linear_map, MaskedMap) and mask_in is None and mask_out is None:
        mask_in, mask_out = linear_map.mask_in, linear_map.mask_out
        linear_map = linear_map.map
    size = _batch_size(linear_map, mask_in, mask_out)
    mask_in, of_in = _checked_mask("mask_in", mask_in, linear_map.in_shape, size, linear_map)
    mask_out, of_out = _checked_mask("mask_out", mask_out, linear_map.out_shape, size, linear_map)
    found = [_extremes("the weights of a linear map", tensor) for tensor in linear_map.tensors()] + of_in + of_out
    magnitudes = tuple(math.frexp(max(-least, largest))[1] for least, largest in found)
    masked = linear_map if mask_in is None and mask_out is None else MaskedMap(linear_map, mask_in, mask_out)
    bare = [None if mask is None else mask.detach() for mask in (mask_in, mask_out)]
    return masked, Problem(linear_map.detach(), size, bare[0], bare[1], magnitudes=magnitudes)


def _extremes(name: str, tensor: Tensor) -> tuple[float, float]:
    """Least and largest entry: NaN and infinity, which are refused, both show in them."""
    least, largest = torch.stack(torch.aminmax(tensor.detach())).tolist()
    if not (math.isfinite(least) and math.isfinite(largest)):
        raise NonFiniteError(name)
    return least, largest


def _batch_size(linear_map: LinearMap, mask_in: Tensor | None, mask_out: Tensor | None) -> int:
    given = {"map": linear_map.batch_size}
    given |= {name: mask.shape[0] for name, mask in (("mask_in", mask_in), ("mask_out", mask_out)) if mask is not None}
    sizes = {size for size in given.values() if size is not None}
    if len(sizes - {1}) > 1 or 0 in sizes or (linear_map.batch_size == 1 and len(sizes) > 1):
        raise ShapeError(f"batch sizes must agree and not be 0: {given}.")
    return max(sizes, default=1)


def _checked_mask(
    name: str, mask: Tensor | None, shape: torch.Size, size: int, linear_map: LinearMap
) -> tuple[Tensor | None, list[tuple[float, float]]]:
    """The mask in the map's dtype, and its extremes."""
    if mask is None:
        return None, []
    if mask.shape[1:] != shape:
        raise ShapeError(f"{name} has shape {tuple(mask.shape)}, expected (B, *{tuple(shape)}).")
    given, mask = mask, mask.to(linear_map.dtype)
    extremes = _extremes(name, mask)
    if extremes[0] < 0:
        raise ConfigError(f"{name} has negative entries; a mask is 0, 1 or a non-negative scale.")
    if given.dtype == torch.float64 != mask.dtype:
        lost = (mask == 0) & (given != 0)
        if bool(lost.any()):  # what is too small for the map's precision is not eliminated
            mask = torch.where(lost, torch.nextafter(mask, torch.ones_like(mask)), mask)
    return mask.expand(size, *shape), [extremes]
