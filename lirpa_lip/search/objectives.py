"""What branch and bound maximises over the Jacobians of a region: a row's norm, the whole matrix's, or one entry."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.jacobian.norms import row_norms, whole_norm
from lirpa_lip.jacobian.tangents import Backward, push_tangent
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.regions.sizes import safe_norm


@dataclass(frozen=True)
class Problem:
    """One maximisation: some rows of one sample's Jacobian.

    Attributes:
        sample: index into the region.
        rows: which rows of the seed.
        target: which answer it belongs to; an answer is the largest of its problems'.
        entry, sign: of the objective `Entry`.
    """

    sample: int
    rows: tuple[int, ...]
    target: int
    entry: int = 0
    sign: float = 1.0


class Objective(ABC):
    """A function of the Jacobian, from above over a domain and exactly at a point; ``norm`` tells which entries
    matter."""

    norm: float

    @abstractmethod
    def upper(self, graph: NetworkGraph, result: Backward, problems: list[Problem], trace: dict) -> Tensor:
        """Upper bounds over domains, ``(batch,)``; leaves in ``trace`` the tangents that met each activation."""

    @abstractmethod
    def value(self, jacobian: Tensor, problems: list[Problem]) -> Tensor:
        """At Jacobians ``(batch, rows, count, n)``: ``(batch, count)``."""

    def settled(self, upper: float, lower: float, tolerance: float) -> bool:
        """Whether a domain with this bound need not be looked at any more."""
        return upper <= lower * (1 + tolerance) + 1e-300


@dataclass(frozen=True)
class RowNorm(Objective):
    """A row's constant in ℓ_p."""

    norm: float

    def upper(self, graph: NetworkGraph, result: Backward, problems: list[Problem], trace: dict):
        return row_norms(graph, result, self.norm, trace).amax(1)

    def value(self, jacobian: Tensor, problems: list[Problem]):
        if self.norm == math.inf:
            return jacobian.abs().sum(-1).amax(1)
        return (safe_norm(jacobian) if self.norm == 2 else jacobian.abs().amax(-1)).amax(1)


@dataclass(frozen=True)
class WholeNorm(Objective):
    """The matrix norm ``‖·‖_p → ‖·‖_p``, p = 2 or 1 (for ∞ it is a maximum over rows)."""

    norm: float

    def upper(self, graph: NetworkGraph, result: Backward, problems: list[Problem], trace: dict):
        rows = row_norms(graph, result, self.norm, trace)
        return whole_norm(rows, result.cotangents[graph.input], self.norm)

    def value(self, jacobian: Tensor, problems: list[Problem]):
        if self.norm == 1:
            return jacobian.abs().sum(1).amax(-1)
        return torch.linalg.matrix_norm(jacobian.transpose(1, 2), 2)


@dataclass(frozen=True)
class Entry(Objective):
    """``sign · J_{row, entry}``, to be shown at most 0 (or not)."""

    norm: float = math.inf

    def upper(self, graph: NetworkGraph, result: Backward, problems: list[Problem], trace: dict):
        lower, upper = result.cotangents[graph.input]
        tangent = torch.zeros_like(lower).flatten(2)
        known = []
        for k, problem in enumerate(problems):
            tangent[k, :, problem.entry] = problem.sign
            ends = (upper if problem.sign > 0 else -lower).flatten(2)
            known.append(ends[k, 0, problem.entry])
        pushed = push_tangent(graph, graph.input, tangent.reshape(lower.shape).unsqueeze(2), result, trace)[:, 0, 0]
        return torch.minimum(pushed, torch.stack(known))

    def value(self, jacobian: Tensor, problems: list[Problem]):
        return torch.stack([p.sign * jacobian[k, 0, :, p.entry] for k, p in enumerate(problems)])

    def settled(self, upper: float, lower: float, tolerance: float):
        return upper <= 0 or lower > 0
