"""Networks by name, with the published shapes and threshold starts, and how to bring one's own.

Every network takes images in [0, 1]: normalisation is its first layer, so ε is always in pixels. Shapes and starts:
Huang et al., NeurIPS 2021 (arXiv 2111.01395), appendix, and the published code of Lee et al., NeurIPS 2020.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn

from lirpa_lip.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    ShapeError,
    UnknownMethodError,
    UntrustedCodeError,
)
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin

ACTIVATIONS = ("relu", "clipped_relu", "maxmin", "clipped_maxmin")


class Normalize(nn.Module):
    """(x − mean) / std per channel, for images (batch, channels, height, width) in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ConfigError(f"normalisation needs as many means as positive stds; got {mean} and {std}.")
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class Architecture:
    """Convolutions as (channels, kernel, stride, padding), widths of hidden fully connected layers, threshold starts.

    ``maxmin`` holds the half-width b of the start (b, −b), or the pair itself, of each activation in order.
    """

    convolutions: tuple[tuple[int, int, int, int], ...]
    hidden: tuple[int, ...]
    threshold: float = 1.0
    maxmin: tuple[tuple[float, float], ...] = ()


def _symmetric(*starts: float) -> tuple[tuple[float, float], ...]:
    return tuple((start, -start) for start in starts)


_4C = ((32, 3, 1, 1), (32, 4, 2, 1), (64, 3, 1, 1), (64, 4, 2, 1))
_6C = ((32, 3, 1, 1), (32, 3, 1, 1), (32, 4, 2, 1), (64, 3, 1, 1), (64, 3, 1, 1), (64, 4, 2, 1))
_8C = (
    *((64, 3, 1, 1), (64, 3, 1, 1), (64, 4, 2, 0), (128, 3, 1, 1), (128, 3, 1, 1), (128, 4, 2, 0)),
    *((256, 3, 1, 1), (256, 4, 2, 0)),
)


def _lires(blocks: int, width: int) -> tuple[tuple[int, int, int, int], ...]:
    """A stem to half the size, blocks that keep it, and a neck to a quarter of that (after Hu et al., NeurIPS 2023)."""
    return ((width, 5, 2, 2), *[(width, 3, 1, 1)] * blocks, (2 * width if width < 256 else width, 4, 4, 0))


ARCHITECTURES: dict[str, Architecture] = {
    "4c3f": Architecture(_4C, (512, 512), threshold=1.0),
    "6c2f": Architecture(
        *(_6C, (512,), 2.0),
        maxmin=((0.1, -0.1), (0.1, -0.15), *_symmetric(0.15, 0.15, 0.2, 0.3, 1.2)),
    ),
    "8c2f": Architecture(_8C, (256,), threshold=1.0, maxmin=_symmetric(0.8, 1.0, 1.4, 1.4, 1.4, 1.6, 2.0, 3.0, 1.6)),
    # Linear residual networks: x + conv(x) is one convolution, whose kernel --init orthogonal starts as an isometry.
    "liresnet-12w256": Architecture(_lires(12, 256), (2048,)),
    "liresnet-6w64": Architecture(_lires(6, 64), (256,)),
    # Small enough for two CPU cores; the first is 4C3F at a quarter of its width.
    "4c3f-quarter": Architecture(((8, 3, 1, 1), (8, 4, 2, 1), (16, 3, 1, 1), (16, 4, 2, 1)), (128, 128)),
    "cnn-small": Architecture(((16, 4, 2, 1), (32, 4, 2, 1)), (100,)),
    "cnn-tiny": Architecture(((8, 3, 1, 1), (16, 4, 2, 1)), (32,)),
    "mlp-small": Architecture((), (100, 100)),
}

_DEFAULT_MAXMIN_START = (0.5, -0.5)


def build_model(
    arch: str,
    input_shape: tuple[int, int, int],
    classes: int,
    activation: str = "clipped_relu",
    mean: Sequence[float] | None = None,
    *,
    std: Sequence[float] | None = None,
    threshold: float | None = None,
) -> nn.Module:
    """Builds the network ``arch`` for images of ``input_shape`` (channels, height, width).

    Args:
        arch: a key of ``ARCHITECTURES``, or ``"package.module:factory"``, one's own callable. It is called as
            ``factory(input_shape=…, classes=…)``, with those of the two it takes, and returns a module that takes
            images in [0, 1].
        activation: one of ``ACTIVATIONS`` (of the named networks only).
        mean, std: normalisation per channel, inside the network; None for none.
        threshold: start of the clipped ReLU's θ, and of MaxMin's (θ, −θ); None for the published one.

    Raises:
        UnknownMethodError: no such architecture or activation.
        ConfigError: the factory cannot be imported or does not return a module.
        ShapeError: the image is too small for the convolutions.
    """
    if ":" in arch:
        return _own_module(arch, input_shape, classes)
    if arch not in ARCHITECTURES:
        raise UnknownMethodError(arch, [*ARCHITECTURES, "package.module:factory"], kind="architecture")
    if activation not in ACTIVATIONS:
        raise UnknownMethodError(activation, ACTIVATIONS, kind="activation")
    spec = ARCHITECTURES[arch]
    layers: list[nn.Module] = [] if mean is None or std is None else [Normalize(mean, std)]
    make_activation = _activation_factory(spec, activation, threshold)
    channels, height, width = input_shape
    for out, kernel, stride, padding in spec.convolutions:
        layers.append(_convolution(channels, out, kernel, stride, padding))
        channels = out
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
        if min(height, width) < 1:
            raise ShapeError(f"images of shape {tuple(input_shape)} are too small for {arch!r}.")
        layers.append(make_activation((channels, height, width)))
    layers.append(nn.Flatten())
    features = channels * height * width
    for out in spec.hidden:
        layers += [nn.Linear(features, out), make_activation((out,))]
        features = out
    return nn.Sequential(*layers, nn.Linear(features, classes))


def _convolution(channels: int, out: int, kernel: int, stride: int, padding: int) -> nn.Conv2d:
    """Weights start N(0, 2 / (kernel² · out)), biases zero, as published; linear layers keep torch's default."""
    layer = nn.Conv2d(channels, out, kernel, stride=stride, padding=padding)
    nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / (kernel * kernel * out)))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _activation_factory(
    spec: Architecture, activation: str, threshold: float | None
) -> Callable[[tuple[int, ...]], nn.Module]:
    """Makes the network's activations, called once per activation in order."""
    starts = iter(spec.maxmin)

    def make(shape: tuple[int, ...]) -> nn.Module:
        if activation == "relu":
            return nn.ReLU()
        if activation == "maxmin":
            return MaxMin()
        if activation == "clipped_relu":
            return ClippedReLU(shape, threshold=spec.threshold if threshold is None else threshold)
        top, bottom = next(starts, _DEFAULT_MAXMIN_START) if threshold is None else (threshold, -threshold)
        return ClippedMaxMin(shape, max_threshold=top, min_threshold=bottom)

    return make


def refuse_code_of_a_file(arch: str, file: str) -> None:
    """Files may be other people's: a module that one of them names is not imported, since that would run its code.

    Raises:
        UntrustedCodeError: ``arch`` is ``module:factory``.
    """
    if ":" in arch:
        raise UntrustedCodeError(arch, file)


def _own_module(path: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    module_name, _, attribute = path.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing in the current folder takes an installed module's place
    try:
        factory = getattr(import_module(module_name), attribute)
    except Exception as error:  # whatever code of the user's raises when it is imported
        raise ConfigError(
            f"cannot import the network {path!r} ({_said(error)}); write it as package.module:factory, with the "
            "module's folder on PYTHONPATH, or go to that folder."
        ) from error
    if not callable(factory):
        raise ConfigError(f"{path} is {type(factory).__name__}, and no function or class that makes a network.")
    accepted = _accepted(path, factory, {"input_shape": input_shape, "classes": classes})
    try:
        model = factory(**accepted)
    except Exception as error:
        raise ConfigError(f"{path} failed: {_said(error)}.") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{path} returned {type(model).__name__}, not a torch.nn.Module.")
    return model


def _said(error: Exception) -> str:
    """An error of the user's code, and where it is."""
    steps = traceback.extract_tb(error.__traceback__)
    place = f" in {steps[-1].filename}, line {steps[-1].lineno}" if steps else ""
    return f"{type(error).__name__}: {error}" + ("" if isinstance(error, ImportError | SyntaxError) else place)


def check_classifier(model: nn.Module, shape: tuple[int, int, int], classes: int, name: str) -> None:
    """One's own network takes images and gives a number for each class: tried on one image of zeros.

    Raises:
        ConfigError: it takes others, gives something else, or a number of classes that the data has not.
    """
    was, model_device = model.training, next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            out = model.eval()(torch.zeros(1, *shape, device=model_device))
    except Exception as error:
        raise ConfigError(f"{name} takes no float32 images of shape {tuple(shape)}: {_said(error)}.") from error
    finally:
        model.train(was)
    if not isinstance(out, Tensor) or tuple(out.shape) != (1, classes):
        given = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(
            f"{name} gives {given} for one image of shape {tuple(shape)}; the data has {classes} classes, so that it "
            f"must be (1, {classes})."
        )


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Puts tensors of a file into a network, all of them or none.

    Raises:
        CheckpointError: they are not the network's; the message names ``source`` and what differs first.
        NonFiniteError: one is NaN or infinite.
    """
    own = model.state_dict()
    missing, more = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    problems = [f"{name!r} is missing" for name in missing] + [f"it knows no {name!r}" for name in more]
    for name in own.keys() & weights.keys():
        here, there = own[name], weights[name]
        if here.shape != there.shape:
            problems.append(f"{name!r} has shape {tuple(there.shape)}, and {tuple(here.shape)} in the network")
        elif here.is_floating_point() != there.is_floating_point():
            problems.append(f"{name!r} has type {there.dtype}, and {here.dtype} in the network")
    if problems:
        rest = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{source} holds the weights of another network: {'; '.join(problems[:3])}{rest}.")
    for name, _ in model.named_parameters():  # a buffer may be a mask of infinities
        if not bool(torch.isfinite(weights.get(name, own[name])).all()):
            raise NonFiniteError(f"{name!r} of {source}", "train again, with a lower learning rate")
    model.load_state_dict(weights)


def _accepted(path: str, factory: Callable, offered: dict[str, object]) -> dict[str, object]:
    """What a factory takes of the keywords that are offered: networks that others wrote take none."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # written in C
        return offered
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = [p.name for p in parameters if p.default is p.empty and p.name in named - offered.keys()]
    if required:
        raise ConfigError(f"{path} needs {', '.join(required)}; a factory is given input_shape and classes alone.")
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return {name: value for name, value in offered.items() if everything or name in named}
