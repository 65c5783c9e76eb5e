"""A fast reader: the graph of an ``nn.Sequential`` straight from its modules, without a trace.

The nodes are those that a trace is read into (`lirpa_lip.network.graph.build_graph`), on the parameters as they are
when `SequentialReader.graph` is called; training reads the network in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lirpa_lip.activations import smooth_functions as smooth
from lirpa_lip.activations.base import Activation
from lirpa_lip.activations.kinked_functions import clip, relu
from lirpa_lip.errors import ConfigError, UnsupportedOperatorError
from lirpa_lip.network.adapters.pairs import emit_clipped_sort, emit_sort
from lirpa_lip.network.emit import GraphBuilder
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.node import Node
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin
from lirpa_lip.nn.functional import broadcast_threshold
from lirpa_lip.norms.linear_map import Conv2dMap, DenseMap, DiagonalMap, ReshapeMap

_INPUT = "input"
Emit = Callable[[GraphBuilder, str, nn.Module, str], str]


class SequentialReader:
    """Reads one sequential network, as often as asked.

    Args:
        model: an ``nn.Sequential``, possibly nested, of the modules in `READABLE`. Dropout and identities are left out.
        sample: an input ``(batch, …)``; its shape matters, its precision and its device.

    Raises:
        UnsupportedOperatorError: the model is not sequential or holds another module, or one whose forward is changed
            (a subclass with its own, hooks).
    """

    def __init__(self, model: nn.Module, sample: Tensor) -> None:
        self._shape, self._dtype, self._device = sample.shape[1:], sample.dtype, sample.device
        self._layers = [(name, layer, _emitter(name, layer)) for name, layer in _flat_layers(model)]
        self.graph()  # names what does not fit

    def graph(self) -> NetworkGraph:
        """The network's nodes on its current parameters."""
        builder = GraphBuilder(self._dtype, self._device)
        last = builder.add(Node(_INPUT, "Input", self._shape))
        for name, layer, emit in self._layers:
            last = emit(builder, name, layer, last)
        return NetworkGraph(builder.nodes, _INPUT, last, self._dtype, self._device)


def _flat_layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Sequential) or _is_changed(model, nn.Sequential):
        yield prefix or type(model).__name__, model
        return
    for name, child in model.named_children():
        yield from _flat_layers(child, f"{prefix}.{name}" if prefix else name)


def _is_changed(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes, or may compute, something else than its kind does."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer).forward is not kind.forward or "forward" in vars(layer) or bool(hooks)


def _emitter(name: str, layer: nn.Module) -> Emit:
    if type(layer).__name__ == "Normalize" and {"mean", "std"} <= dict(layer.named_buffers()).keys():
        return _normalise
    for kind, emit in _EMITTERS.items():
        if isinstance(layer, kind):
            if _is_changed(layer, kind):
                raise UnsupportedOperatorError(name, type(layer).__name__, READABLE, "its forward is changed")
            return emit
    raise UnsupportedOperatorError(
        name, type(layer).__name__, READABLE, "this reader is for sequential networks; general graphs are traced"
    )


def _unsupported(name: str, layer: nn.Module, reason: str) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(name, type(layer).__name__, reason=reason)


def _linear(builder: GraphBuilder, name: str, layer: nn.Module, parent: str) -> str:
    assert isinstance(layer, nn.Linear)
    if builder.shape(parent) != (layer.in_features,):
        raise _unsupported(name, layer, f"it reads shape {tuple(builder.shape(parent))}, and is read on flat samples")
    bias = None if layer.bias is None else layer.bias.unsqueeze(0)
    return builder.affine(name, "Linear", [parent], [DenseMap(layer.weight)], bias)


def _convolution(builder: GraphBuilder, name: str, layer: nn.Module, parent: str) -> str:
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise _unsupported(name, layer, f"padding={layer.padding!r}, padding_mode={layer.padding_mode!r}")
    geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    bias = None if layer.bias is None else layer.bias.reshape(1, -1, 1, 1)
    return builder.affine(name, "Conv2d", [parent], [Conv2dMap(layer.weight, builder.shape(parent), **geometry)], bias)


def _flatten(builder: GraphBuilder, name: str, layer: nn.Module, parent: str) -> str:
    assert isinstance(layer, nn.Flatten)
    shape = builder.shape(parent)
    flat = torch.Size(torch.empty(1, *shape, device="meta").flatten(layer.start_dim, layer.end_dim).shape[1:])
    if layer.start_dim == 0 or flat.numel() != shape.numel():
        raise _unsupported(name, layer, "it flattens the batch")
    if flat == shape:
        return parent
    return builder.affine(
        name, "Flatten", [parent], [ReshapeMap(shape, flat, dtype=builder.dtype, device=builder.device)]
    )


def _normalise(builder: GraphBuilder, name: str, layer: nn.Module, parent: str) -> str:
    shape = builder.shape(parent)
    scale, mean = 1.0 / layer.get_buffer("std"), layer.get_buffer("mean")
    scaled = DiagonalMap(scale[0].expand(shape), shape)
    return builder.affine(name, "Normalize", [parent], [scaled], -mean * scale)


def _nothing(builder: GraphBuilder, name: str, layer: nn.Module, parent: str) -> str:
    return parent


def _activation(record: Callable[[nn.Module], Activation]) -> Emit:
    def emit(builder: GraphBuilder, name: str, layer: nn.Module, parent: str) -> str:
        return builder.activation(name, type(layer).__name__, parent, record(layer))

    return emit


def _clip_of(layer: nn.Module) -> Activation:
    assert isinstance(layer, nn.Hardtanh)
    if layer.min_val > layer.max_val:
        raise ConfigError(f"a Hardtanh from {layer.min_val} to {layer.max_val} has no values.")
    return clip(layer.min_val, layer.max_val)


def _clipped_relu(builder: GraphBuilder, name: str, layer: nn.Module, parent: str) -> str:
    assert isinstance(layer, ClippedReLU)
    shape = builder.shape(parent)
    threshold = broadcast_threshold(layer.threshold, torch.empty(1, *shape, device="meta")).unsqueeze(0)
    record = clip(0.0, threshold)
    record.function = layer.forward
    return builder.activation(name, "ClippedReLU", parent, record)


def _max_min(builder: GraphBuilder, name: str, layer: nn.Module, parent: str) -> str:
    return emit_sort(builder, "MaxMin", parent, name)


def _clipped_max_min(builder: GraphBuilder, name: str, layer: nn.Module, parent: str) -> str:
    assert isinstance(layer, ClippedMaxMin)
    return emit_clipped_sort(builder, "ClippedMaxMin", parent, name, (layer.max_threshold, layer.min_threshold))


_EMITTERS: dict[type[nn.Module], Emit] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.Flatten: _flatten,
    nn.Identity: _nothing,
    nn.Dropout: _nothing,
    nn.ReLU6: _activation(_clip_of),
    nn.Hardtanh: _activation(_clip_of),
    nn.ReLU: _activation(lambda layer: relu()),
    nn.Tanh: _activation(lambda layer: smooth.tanh()),
    nn.Sigmoid: _activation(lambda layer: smooth.sigmoid()),
    ClippedReLU: _clipped_relu,
    MaxMin: _max_min,
    ClippedMaxMin: _clipped_max_min,
}
#: Names of the modules that can be read; ``Normalize`` is any module of that name with buffers ``mean`` and ``std``.
READABLE = ("Normalize", *(kind.__name__ for kind in _EMITTERS))
