"""`lirpa_lip.verify`: verdicts from Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from lirpa_lip.errors import ConfigError, ShapeError
from lirpa_lip.training.epsilon import parse_epsilon
from lirpa_lip.verify.cascade import decide_property
from lirpa_lip.verify.input_region import InputRegion
from lirpa_lip.verify.network import Network, network_of
from lirpa_lip.verify.properties import Property, corridor, stays_first
from lirpa_lip.verify.readers import read_network
from lirpa_lip.verify.records import Verdict
from lirpa_lip.verify.rounding import exact
from lirpa_lip.verify.settings import VerifySettings
from lirpa_lip.verify.vnnlib import read_vnnlib


def verify(
    model: nn.Module | Network | str | Path,
    x: Tensor | None = None,
    labels: Tensor | Sequence[int] | None = None,
    eps: float | str | Fraction | None = None,
    norm: float = 2,
    *,
    box: tuple[float | str, float | str] | None = None,
    region: InputRegion | None = None,
    property: Property | str | Path | None = None,
    within: float | str | None = None,
    settings: VerifySettings | None = None,
    progress: Callable[[Verdict], None] = lambda verdict: None,
    **options: float | str | bool | None,
) -> list[Verdict]:
    """Decides whether a network keeps to a property on regions of inputs: certified, refuted, or open with its gap::

        for v in lirpa_lip.verify(model, images, labels, eps="36/255", box=(0, 1), time_limit=10):
            print(v.status, v.lower, v.upper)

        lirpa_lip.verify("net.onnx", property="p.vnnlib")

    Args:
        model: a module in eval mode, from ``(batch, *shape)`` to ``(batch, outputs)``; or a file, see `read_network`.
        x: ``(batch, *shape)``, the centres.
        labels: classes that must stay the only largest output; None, without ``within``, for the predictions.
        eps: radius, read exactly: 0.1 is a tenth, "36/255" that fraction.
        norm: 2 or inf.
        box: ends of possible inputs, which cut the ball.
        region: of a single instance, in place of ``x`` and ``eps``: see `InputRegion.from_ranges`.
        property: a VNN-LIB file, or a `Property`, which has its regions itself.
        within: outputs must stay within this of what they are at the centre (regression).
        settings, options: `VerifySettings`, or fields of it, such as ``time_limit``.
        progress: called with each verdict as it is found.

    Returns:
        One record per instance, in order.

    Raises:
        ConfigError: arguments that do not go together, or a value that a setting cannot have.
        ShapeError, NonFiniteError, TrainingModeError, UnsupportedOperatorError, DataError: as named.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))  # the larger of two numbers
        >>> x = torch.tensor([[1.0, 0.0], [0.5, 0.4]])
        >>> [v.status for v in verify(model.eval(), x, [0, 0], eps="1/10", norm=math.inf)]
        ['certified', 'refuted']
    """
    chosen = _settings(settings, options)
    if isinstance(property, (str, Path, Property)) and (x is not None or labels is not None or region is not None):
        raise ConfigError("a property has its own regions: give it without x, labels and region.")
    network = _network(model, x, region, property)
    claims = _claims(network, x, labels, eps, norm, box, region, property, within)
    verdicts = []
    with torch.random.fork_rng(devices=[]):  # the caller's own chance is left alone
        for index, claim in enumerate(claims):
            verdicts.append(decide_property(network, claim, chosen, index))
            progress(verdicts[-1])
    return verdicts


def _settings(settings: VerifySettings | None, options: dict[str, float | str | bool | None]) -> VerifySettings:
    if settings is not None and options:
        raise ConfigError(f"give settings, or {next(iter(options))} and its like, not both.")
    try:
        return settings or VerifySettings(**options)  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigError(f"an unknown setting of verify: {error}.") from error


def _network(
    model: nn.Module | Network | str | Path,
    x: Tensor | None,
    region: InputRegion | None,
    property: Property | str | Path | None,
) -> Network:
    if isinstance(model, Network):
        return model
    if isinstance(model, (str, Path)):
        return read_network(model, shape=None if x is None else x.shape[1:])
    if x is not None:
        return network_of(model, x.shape[1:])
    if region is not None:
        return network_of(model, region.centre.shape[1:])
    if isinstance(property, Property):
        return network_of(model, property.cases[0].region.centre.shape[1:])
    raise ConfigError(
        "a module does not say the shape of its input: give x, a region, or a Property; for a VNN-LIB file make it a "
        "network first, lirpa_lip.verify.network.network_of(model, shape)."
    )


def _claims(
    network: Network,
    x: Tensor | None,
    labels: Tensor | Sequence[int] | None,
    eps: float | str | Fraction | None,
    norm: float,
    box: tuple[float | str, float | str] | None,
    region: InputRegion | None,
    property: Property | str | Path | None,
    within: float | str | None,
) -> list[Property]:
    if isinstance(property, Property):
        return [property]
    if property is not None:
        return [read_vnnlib(property, network.shape, network.outputs, network.dtype)]
    if region is not None:
        regions = [region]
    else:
        if x is None or eps is None:
            raise ConfigError("give x and eps, a region, or a property.")
        regions = regions_around(network, x, parse_epsilon(eps), norm, box)
    if within is not None:
        if labels is not None:
            raise ConfigError("give labels (a class stays first) or within (outputs stay near), not both.")
        return [stays_within(network, one, exact(str(within)), str(k)) for k, one in enumerate(regions)]
    return [
        stays_first(one, _label(network, one, labels, k, len(regions)), network.outputs, str(k))
        for k, one in enumerate(regions)
    ]


def regions_around(
    network: Network,
    x: Tensor,
    eps: Fraction,
    norm: float,
    box: tuple[float | str, float | str] | None,
) -> list[InputRegion]:
    """Balls around the samples of ``x``, in the network's precision.

    Raises:
        ShapeError: they are not of the network's input shape.
    """
    if tuple(x.shape[1:]) != network.shape:
        raise ShapeError(f"inputs have shape {tuple(x.shape[1:])}; {network.name} takes {network.shape}.")
    ends = None if box is None else (exact(str(box[0])), exact(str(box[1])))
    if ends is not None and ends[0] >= ends[1]:
        raise ConfigError(f"the box of possible inputs, {box[0]} to {box[1]}, is empty.")  # type: ignore[index]
    norm = float(norm)
    return [
        InputRegion.around(
            one.unsqueeze(0).detach().cpu().to(network.dtype), norm if norm == 2 else _inf(norm), eps, ends
        )
        for one in x
    ]


def _inf(norm: float) -> float:
    if not math.isinf(norm):
        raise ConfigError(f"norm={norm:g}: regions are balls of norm 2 or inf.")
    return math.inf


def stays_within(network: Network, region: InputRegion, width: Fraction, name: str = "") -> Property:
    """Outputs stay within ``width`` of the network's own at the region's centre."""
    nominal = [Fraction(value) for value in network.original(region.centre).tolist()]
    return corridor(region, nominal, width, name)


def _label(network: Network, region: InputRegion, labels: Tensor | Sequence[int] | None, k: int, count: int) -> int:
    if labels is None:
        return int(network.original(region.centre).argmax())
    if len(labels) != count:
        raise ShapeError(f"there are {len(labels)} labels for {count} inputs; give one for each.")
    if isinstance(labels, Tensor) and labels.is_floating_point():
        raise ShapeError(f"labels have type {labels.dtype}; give whole numbers.")
    return int(labels[k])
