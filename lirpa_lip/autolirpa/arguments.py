"""What users pass to ``compute_bounds`` and ``local_lipschitz``: checked, and put in the form auto_LiRPA expects."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import BoundArguments
from typing import Any

import auto_LiRPA
import torch
from torch import Tensor

from lirpa_lip.autolirpa.perturbation import in_region
from lirpa_lip.errors import ConfigError, NonFiniteError, ShapeError

#: auto_LiRPA 0.3 gives the default specification of an output with several axes none but one.
_FLAT_DEFAULT = auto_LiRPA.__version__ == "0.3"


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Bounds need tensors with versions and gradients, which inference mode does not make; it then means no_grad."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def ordinary(x: Any) -> Any:
    """The same input, with copies of tensors that were made in inference mode."""
    if isinstance(x, (tuple, list)):
        return type(x)(map(ordinary, x))
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    region = getattr(x, "ptb", None)
    if isinstance(x, auto_LiRPA.BoundedTensor) and region is not None:
        held = {k: v for k, v in vars(region).items() if isinstance(v, Tensor) and _of_inference(v)}
        if not held and not _of_inference(x):
            return x
        region = copy.copy(region)
        vars(region).update({k: v.clone() for k, v in held.items()})
        return in_region(Tensor.clone(x), region)
    return x.clone() if _of_inference(x) else x


def _of_inference(x: Tensor) -> bool:
    """Whether a tensor, or what it is a view of by another class, was made in inference mode."""
    try:
        return x._version < 0
    except RuntimeError:
        return True


def own_dtype(bounded: Any) -> torch.dtype | None:
    """The precision of a wrapped model's parameters, also of those only folded values read; ``None`` without any."""
    first = next((p for p in bounded.parameters() if p.is_floating_point()), None)
    if first is not None:
        return first.dtype
    leaf = next((node for node in bounded._modules.values() if hasattr(node, "folded")), None)
    return None if leaf is None else leaf.forward().dtype


def wrapped_dtype(bounded: Any, otherwise: torch.dtype) -> torch.dtype:
    """The precision a wrapped model computes in: of its parameters, or of what it was wrapped with if it has none."""
    own = own_dtype(bounded)
    if own is not None:
        return own
    given = getattr(bounded, "global_input", None)
    inputs = given if isinstance(given, (tuple, list)) else (given,)
    return next((t.dtype for t in inputs if isinstance(t, Tensor) and t.is_floating_point()), otherwise)


@contextmanager
def some_parameter(bounded: Any, x: Any) -> Iterator[None]:
    """auto_LiRPA asks a parameter for the precision; in a module without any of its own, one like the input answers."""
    if next(bounded.parameters(), None) is not None:
        yield
        return
    inputs = x if isinstance(x, (tuple, list)) else (x,)
    kind = next((t.dtype for t in inputs if isinstance(t, Tensor) and t.is_floating_point()), own_dtype(bounded))
    stand_in = torch.nn.Parameter(torch.zeros(1, device=bounded.device, dtype=kind), requires_grad=False)
    bounded.__dict__["parameters"] = lambda recurse=True: iter([stand_in])
    try:
        yield
    finally:
        del bounded.__dict__["parameters"]


def check_input(bounded: Any, x: Any) -> int | None:
    """Checks the input (``None`` stands for the last one) and returns its batch size.

    Raises:
        ShapeError: an empty batch, or a region that does not fit the input.
        ConfigError: the input and the model differ in precision, or a region lies around whole numbers.
    """
    inputs = x if isinstance(x, (tuple, list)) else (x,)
    kinds = {p.dtype for p in bounded.parameters() if p.is_floating_point()} | {own_dtype(bounded)}
    own = kinds - {None}
    batch = None
    for value in inputs:
        if not isinstance(value, Tensor) or value.ndim == 0:
            continue
        batch = value.shape[0] if batch is None else batch
        if value.shape[0] == 0:
            raise ShapeError(f"the input has shape {tuple(value.shape)}, an empty batch; give at least one sample.")
        _check_region(value)
        if own and value.is_floating_point() and value.dtype not in own:
            kind = next(iter(own))
            raise ConfigError(
                f"the input is {value.dtype} and the model {kind}: convert one to the other's precision, as in "
                f"x.to({kind}), or wrap the model again after model.to({value.dtype})."
            )
    return batch


def _check_region(x: Tensor) -> None:
    region = getattr(x, "ptb", None)
    if not isinstance(region, auto_LiRPA.PerturbationLpNorm):
        return
    if not x.is_floating_point():
        raise ConfigError(f"the input is {x.dtype}, around which there is no region; convert it, as in x.float().")
    eps = torch.as_tensor(0.0 if region.eps is None else region.eps)
    if eps.ndim == 1 and len(eps) not in (1, len(x)):
        raise ShapeError(f"eps has {len(eps)} entries for a batch of {len(x)}; give one for each sample.")
    for name in ("x_L", "x_U"):
        end = getattr(region, name, None)
        if isinstance(end, Tensor) and not fits(end.shape, x.shape):
            raise ShapeError(
                f"{name} has shape {tuple(end.shape)} beside an input of shape {tuple(x.shape)}; give one end for each "
                "feature of each sample, or a shape that broadcasts to that."
            )


def fits(shape: torch.Size, whole: torch.Size) -> bool:
    """Whether a tensor of one shape broadcasts to the other."""
    return len(shape) <= len(whole) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(whole), strict=False))


def check_rows(c: Any, batch: int | None) -> Any:
    """A specification ``(batch, specs, outputs)``, or one ``(specs, outputs)`` for all samples, as the former.

    Raises:
        ShapeError: no rows, or rows for another batch.
        NonFiniteError: NaN or infinite entries.
    """
    if c is None:
        return c
    if not isinstance(c, Tensor):
        raise ShapeError(f"C is a {type(c).__name__}; give a tensor (batch, specs, outputs).")
    if c.ndim < 2 or c.numel() == 0:
        raise ShapeError(f"C has shape {tuple(c.shape)}; expected (batch, specs, outputs) with at least one row.")
    if not bool(torch.isfinite(c).all()):
        raise NonFiniteError("C", "specifications are finite linear functions of the output")
    if c.ndim == 2:
        c = c.unsqueeze(0)
    if batch is not None and c.shape[0] not in (1, batch):
        raise ShapeError(f"C has shape {tuple(c.shape)} for a batch of {batch}; give rows for each sample, or for all.")
    return c if batch is None or c.shape[0] == batch else c.expand(batch, *c.shape[1:])


def prepare_call(bounded: Any, call: BoundArguments, name: Any) -> None:
    """Checks and completes, in place, the arguments of a call that goes to one of auto_LiRPA's own methods."""
    call.arguments["x"] = ordinary(call.arguments.get("x"))
    batch = check_input(bounded, call.arguments["x"])
    c = ordinary(check_rows(call.arguments.get("C"), batch))
    own = own_dtype(bounded)
    if isinstance(c, Tensor) and own is not None and c.dtype != own:
        if not bool((c.to(own).to(c.dtype) == c).all()):
            raise ConfigError(f"C is {c.dtype}, with values the model's {own} does not hold; give C in {own}.")
        c = c.to(own)
    shape = tuple(bounded.final_shape)[1:]
    if _FLAT_DEFAULT and batch and len(shape) > 1 and "crown" in str(name):
        if c is None:
            c = torch.eye(math.prod(shape), device=bounded.device, dtype=own).expand(batch, -1, -1)
        if isinstance(c, Tensor) and c.ndim == 3 and c.shape[2] == math.prod(shape):
            c = c.reshape(*c.shape[:2], *shape)
    if "C" in call.arguments or c is not None:
        call.arguments["C"] = c
