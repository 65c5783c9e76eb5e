"""What the user's own model says: its values at given points, watched, and whether it is a function of one input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lirpa_lip.errors import ConfigError, LirpaLipError, TrainingModeError
from lirpa_lip.precision import callers_precision
from lirpa_lip.trust.audit import audited
from lirpa_lip.trust.live import model_of, refresh

_TRAINING_DEPENDENT = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class Reference:
    """What the model itself says.

    Attributes:
        points: its inputs, each ``(2 · batch, *shape)`` (or ``batch``): the centres, then random points of the region.
        values: its outputs there, ``(same, *output shape)``.
    """

    points: tuple[Tensor, ...]
    values: Tensor


def training_dependent(model: Any) -> list[str]:
    """Names of the model's modules whose output, in the mode they are in, is no function of one input."""
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    return [name or "model" for name, m in modules if isinstance(m, _TRAINING_DEPENDENT) and m.training]


def current_model(bounded: Any) -> Any:
    """The wrapped model, its tensors put into the graph.

    Raises:
        ConfigError: it is not known, or its tensors do not fit the graph any more.
        TrainingModeError: it is in training mode, where that makes a difference.
    """
    model = model_of(bounded)
    if model is None:
        raise ConfigError("the model behind this module is not known: wrap it after lirpa_lip.register() is called.")
    refresh(bounded)
    for name in training_dependent(model):
        raise TrainingModeError(name, "BatchNorm or Dropout")
    return model


def reference(bounded: Any, points: tuple[Tensor, ...], batch: int, watched: bool = True) -> Reference:
    """The model's values at ``points``, audited: in one forward pass where it takes them all, else ``batch`` at a time.

    Args:
        watched: ``False`` for the values alone, in a training step.

    Raises:
        UntraceableError: as `lirpa_lip.audit.audited`.
        ConfigError: the model fails on them.
    """
    model, total = model_of(bounded), len(points[0])
    ask = audited if watched else _plainly
    failed: Exception | None = None
    # a batch size may be written into the model
    for size in dict.fromkeys((total, batch)):
        parts = [tuple(p[i : i + size] for p in points) for i in range(0, total, size)]
        try:
            values = torch.cat([_first(ask(model, part)) for part in parts])
        except LirpaLipError:
            raise
        except Exception as error:
            failed = failed or error
            continue
        if len(values) == total:
            return Reference(points, values)
    why = "its output has no batch axis first" if failed is None else f"{type(failed).__name__}: {failed}"
    raise ConfigError(f"the model's own forward fails on inputs like these: {why}.") from failed


@torch.no_grad()
def _plainly(model: Any, inputs: tuple[Tensor, ...]) -> Any:
    with callers_precision():
        return model(*inputs)


def _first(output: Any) -> Tensor:
    return next(t for t in tree_leaves(output) if isinstance(t, Tensor))
