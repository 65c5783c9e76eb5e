"""From auto_LiRPA's perturbed tensors to regions: the only reader."""

from __future__ import annotations

from typing import Any

import auto_LiRPA
import torch
from torch import Tensor

from lirpa_lip.autolirpa.perturbation import check_ball_and_box
from lirpa_lip.errors import ShapeError, UnsupportedNormError
from lirpa_lip.precision import next_above, next_below, rounded_up
from lirpa_lip.regions.region import Region, box_ends


def read_region(
    x: Any,
    shape: torch.Size,
    dtype: torch.dtype,
    image_box: tuple | None = None,
    *,
    norms: tuple[float, ...] = (2,),
    what: str = "the local Lipschitz bound",
) -> Region:
    """The region of ``x``, in ``dtype``, rounded outward; differentiable in the centre and the radius.

    For ``norm=2`` the ball; ``x_L … x_U``, or in their place the box of possible inputs, cut it. For ``norm=inf`` the
    box ``x ± eps``, or ``x_L … x_U`` in its place, and the box of possible inputs cuts either.

    Args:
        x: a ``BoundedTensor``, or a tuple with one.
        shape: of one input, as the model was wrapped with it.
        image_box: ``(low, high)`` of possible inputs.
        norms: of regions that the caller takes, of 2 and inf; ``what`` names it in errors.

    Raises:
        ShapeError: no ``BoundedTensor``, or not of that shape; a radius that fits no sample.
        UnsupportedNormError: a region of another norm.
        ConfigError, NonFiniteError: a box or a radius that cannot be.
    """
    x = x[0] if isinstance(x, (tuple, list)) and len(x) == 1 else x
    if not isinstance(x, auto_LiRPA.BoundedTensor):
        raise ShapeError("x must be one BoundedTensor: x=(BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1)),).")
    if x.shape[1:] != shape:
        raise ShapeError(
            f"the input has shape {tuple(x.shape)}, expected (batch, *{tuple(shape)}), "
            "the shape the model was wrapped with."
        )
    norm = getattr(x.ptb, "norm", None)
    if norm not in norms:
        raise UnsupportedNormError(type(x.ptb).__name__ if norm is None else norm, what, norms)
    check_ball_and_box(x.ptb, x)
    centre = x.as_subclass(Tensor)
    low, high = getattr(x.ptb, "x_L", None), getattr(x.ptb, "x_U", None)
    if norm == 2:
        least, most = image_box or (None, None)
        return Region.make(centre, x.ptb.eps, least if low is None else low, most if high is None else high, dtype)
    return _box(centre, x.ptb.eps, (low, high), image_box, dtype)


def _box(
    centre: Tensor,
    eps: float | Tensor,
    ends: tuple[Tensor | None, Tensor | None],
    image_box: tuple | None,
    dtype: torch.dtype,
) -> Region:
    low, high = (None if end is None else box_ends(centre, end, end, dtype)[side] for side, end in enumerate(ends))
    wide, radius = centre.to(dtype), rounded_up(eps, dtype, centre.device)
    if radius.ndim == 1:
        if radius.numel() not in (1, len(centre)):
            raise ShapeError(
                f"eps has {radius.numel()} entries for a batch of {len(centre)}; give one for each sample."
            )
        radius = radius.reshape(-1, *[1] * (centre.ndim - 1))
    low = next_below(wide - radius) if low is None else low
    high = next_above(wide + radius) if high is None else high
    if image_box is not None:
        least, most = box_ends(centre, image_box[0], image_box[1], dtype)
        low, high = torch.maximum(low, least), torch.minimum(high, most)
    return Region.box(wide, low, high)
