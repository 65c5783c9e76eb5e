"""The model behind a wrapped module: remembered, and its tensors, as they are now, put into the traced graph.

auto_LiRPA takes the parameters themselves into its graph but copies of the buffers, and keeps what it was given when
the model's are replaced. Here every call begins with the model's current ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lirpa_lip.errors import ConfigError

_AGAIN = "wrap the model again"


def remember(bounded: Any, model: Any) -> None:
    """Keeps the model with its wrapped form, and which traced leaf is which of its tensors.

    The model does not become a sub-module: the wrapped form's parameters and state are as they were.
    """
    current = _current(model)
    leaves = {}
    for name, node in _leaves(bounded):
        tensor = current.get(node.ori_name)
        if tensor is not None and tensor.shape == _value(node).shape:
            leaves[name] = node.ori_name
    object.__setattr__(bounded, "_user_model", (model,))
    object.__setattr__(bounded, "_live_leaves", leaves)
    object.__setattr__(bounded, "_traced_shapes", dict(_shapes(bounded)))
    refresh(bounded)


def model_of(bounded: Any) -> Any:
    """The model that was wrapped; ``None`` where that was before `lirpa_lip.register` was called."""
    return getattr(bounded, "_user_model", (None,))[0]


def refresh(bounded: Any) -> None:
    """Puts the model's current parameters and buffers into the traced graph, as the tensors they are.

    Raises:
        ConfigError: one of them is gone, or has another shape, kind or device than when the model was wrapped.
    """
    model, leaves = model_of(bounded), getattr(bounded, "_live_leaves", {})
    if model is None or not leaves:
        return
    current, nodes = _current(model), dict(_leaves(bounded))
    for name, original in leaves.items():
        node, tensor = nodes[name], current.get(original)
        if tensor is None:
            raise ConfigError(f"the model has no parameter or buffer {original!r} any more; {_AGAIN}.")
        held = _value(node)
        if tensor is held:
            continue
        if tensor.shape != held.shape:
            shapes = f"{tuple(tensor.shape)}, and had {tuple(held.shape)} when it was wrapped"
            raise ConfigError(f"the model's {original!r} has shape {shapes}; {_AGAIN}.")
        if tensor.device != torch.empty(0, device=bounded.device).device:
            raise ConfigError(f"the model's {original!r} is on {tensor.device}, wrapped on {bounded.device}; {_AGAIN}.")
        _put(node, tensor, original)


def follow(bounded: Any, fn: Any) -> None:
    """Applies to the model what ``.to()``, ``.double()`` and their kin have just applied to its wrapped form."""
    model = model_of(bounded)
    if isinstance(model, nn.Module):
        model._apply(fn)
        refresh(bounded)


def _shapes(bounded: Any):
    for name, node in bounded._modules.items():
        value = None if getattr(node, "input_index", None) is None else getattr(node, "value", None)
        shape = node.output_shape if value is None else value.shape  # BoundConcatGrad has an input index, and no value
        if shape is not None:
            yield name, torch.Size(shape)


def _current(model: Any) -> dict[str, Tensor]:
    if not isinstance(model, nn.Module):
        return {}
    return {**dict(model.named_buffers(remove_duplicate=False)), **dict(model.named_parameters(remove_duplicate=False))}


def _leaves(bounded: Any):
    for name, node in bounded._modules.items():
        if type(node).__name__ in ("BoundParams", "BoundBuffers"):
            yield name, node


def _value(node: Any) -> Tensor:
    found = node._parameters.get("param")
    return found if found is not None else node._buffers["buffer"]


def _put(node: Any, tensor: Tensor, name: str) -> None:
    if "buffer" in node._buffers:
        node._buffers["buffer"] = tensor.detach() if isinstance(tensor, nn.Parameter) else tensor
    elif isinstance(tensor, nn.Parameter):
        node._parameters["param"] = tensor
        if hasattr(tensor, "ptb"):
            node.perturbation = tensor.ptb
    else:
        raise ConfigError(f"the model's {name!r} was a parameter when it was wrapped, and is none now; {_AGAIN}.")
