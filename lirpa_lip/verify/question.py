"""What is asked of every sample of a data set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from lirpa_lip.errors import ConfigError, DataError
from lirpa_lip.training.epsilon import parse_epsilon
from lirpa_lip.verify.api import stays_within
from lirpa_lip.verify.data import Samples
from lirpa_lip.verify.input_region import InputRegion, Span
from lirpa_lip.verify.network import Network
from lirpa_lip.verify.properties import Property, stays_first
from lirpa_lip.verify.rounding import exact


@dataclass(frozen=True)
class Question:
    """What is asked of every sample; numbers are text and read exactly.

    Attributes:
        norm: "2" or "inf"; unused where the samples have ranges of their own.
        eps: radius, or None for the samples' ranges.
        box: ends of possible inputs, or None.
        within: half-width of the corridor of outputs, or None for labels.
        radius: resolution that each certified radius is searched to, or None.
    """

    norm: str = "2"
    eps: str | None = None
    box: tuple[str, str] | None = None
    within: str | None = None
    radius: str | None = None

    def region(self, network: Network, samples: Samples, index: int) -> InputRegion:
        """
        Raises:
            ConfigError: there is neither a radius nor a range.
        """
        x = samples.x[index : index + 1].to(network.dtype)
        if samples.low is not None and samples.high is not None and self.eps is None:
            ends = zip(samples.low[index].flatten().tolist(), samples.high[index].flatten().tolist())
            spans = [_span(low, high, index) for low, high in ends]
            return InputRegion.from_ranges(spans, network.shape, network.dtype)
        if self.eps is None:
            raise ConfigError("give --eps, or data with low and high for each input.")
        return self.ball(x, parse_epsilon(self.eps))

    def ball(self, x: Tensor, eps: Fraction) -> InputRegion:
        box = None if self.box is None else (exact(self.box[0]), exact(self.box[1]))
        return InputRegion.around(x, 2 if self.norm == "2" else math.inf, eps, box)

    def claim(self, network: Network, region: InputRegion, label: int | None, name: str) -> Property:
        """
        Raises:
            DataError: the label is no class of the network.
        """
        if self.within is not None:
            return stays_within(network, region, exact(self.within), name)
        if label is None:
            label = int(network.original(region.centre).argmax())
        return stays_first(region, label, network.outputs, name)


def _span(low: float, high: float, index: int) -> Span:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"sample {index} has a range that is not finite; give both ends.")
    return Span(Fraction(low), Fraction(high))
