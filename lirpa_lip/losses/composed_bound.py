"""The composed local bound of a sequential network, for training.

With every activation D_k = C_k + E_k, |E_k| ≤ R_k, and G the network linearised at the C's, deviations obey

    Lip(R_k^½ z_k) ≤ r_k = max_{‖u‖ = 1} Σ_{j < k} ‖(R_k^½ G_{k←j} R_j^½)ᵀ u‖ r_j          (r_input = 1, R_input = I),
    |Δ(vᵀ z_L)| ≤ ‖x' − x‖ · Σ_j ‖(vᵀ G_{L←j} R_j^½)ᵀ‖ r_j.

The maximum over u bounds what the sources can do *together*; the sum of the terms' norms (DESIGN, Mathematics 4) is
never smaller. For training u is improved from a kept start by the fixed-point step u ∝ Σ_j r_j M_j M_jᵀu / ‖M_jᵀu‖, so
values are estimates. All pairs get the bound ‖(w_y − w_j) S^½‖ · Lip(S^½ z_L), S the largest slopes; the rivals that
come closest under it also get the second line above, one backward pass each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lirpa_lip.errors import ConfigError
from lirpa_lip.local.layers import safe_sqrt
from lirpa_lip.losses.local_bound import SequentialLocalLip, Swept, masked_pair_norms
from lirpa_lip.losses.slopes import Diagonal, Factor, Rotation, factors_of
from lirpa_lip.losses.warm_norm import FEW, MANY
from lirpa_lip.norms.linear_map import LinearMap

Operation = LinearMap | Factor


class SequentialComposed(SequentialLocalLip):
    """See ``SequentialLocalLip``, whose intervals and product bound this one refines.

    Args:
        refinements: fixed-point steps on u per activation and call.
        rivals: pairs per sample that are bounded one by one.
    """

    def __init__(self, model: nn.Module, sample: Tensor, refinements: int = 1, rivals: int = 2, **options: Any) -> None:
        if refinements < 0 or rivals < 1:
            raise ConfigError(f"refinements={refinements} must not be negative, and rivals={rivals} at least 1.")
        self.refinements, self.rivals = refinements, rivals
        super().__init__(model, sample, **options)

    def _pairs(self, swept: Swept, logits: Tensor, weight: Tensor, labels: Tensor, radius: Tensor) -> Tensor:
        operations, rates = self._chain(swept, radius)
        product = super()._pairs(swept, logits, weight, labels, radius)
        pairs = torch.minimum(product, self._whole(operations, rates, weight, labels))
        count = min(self.rivals, weight.shape[0] - 1)
        with torch.no_grad():
            threat = (logits + radius.unsqueeze(1) * pairs).scatter(1, labels[:, None], -torch.inf)
            rivals = threat.topk(count, dim=1).indices
        rows = weight[labels].unsqueeze(1) - weight[rivals]
        found = [_pull_back(operations, rows[:, k].reshape(swept.centre.shape)) for k in range(count)]
        composed = torch.stack([_total(sources, rates) for sources in found], dim=1)
        return pairs.scatter(1, rivals, torch.minimum(composed, pairs.gather(1, rivals)))

    def _whole(self, operations: list[Operation], rates: list[Tensor], weight: Tensor, labels: Tensor) -> Tensor:
        """‖(w_y − w_j) S^½‖ · Lip(S^½ z_L) for all pairs, with S of the last diagonal factor."""
        index = max(i for i, operation in enumerate(operations) if isinstance(operation, Diagonal))
        last = operations[index]
        assert isinstance(last, Diagonal)
        root = safe_sqrt(last.centre.abs() + last.root.square())
        rate = self._rate(len(rates), operations[:index], rates[:-1], root)
        # Only a rotation can follow, after the fold of a MaxMin, whose slopes are 1 or −1: S is the identity.
        mask = root.flatten(1) if index == len(operations) - 1 else None
        return rate.unsqueeze(1) * masked_pair_norms(weight, labels, mask)

    def _chain(self, swept: Swept, radius: Tensor) -> tuple[list[Operation], list[Tensor]]:
        """All linear maps and factors up to the features, and r of the input and of every diagonal factor."""
        operations: list[Operation] = []
        rates = [torch.ones_like(radius)]
        for layer in swept.layers:
            operations.append(layer.linear)
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.interval_gradients):
                factors = factors_of(layer.activation, layer.centre, layer.lower, layer.upper)
            for factor in factors:
                if isinstance(factor, Diagonal):
                    rates.append(self._rate(len(rates), operations, rates, factor.root))
                operations.append(factor)
        return operations, rates

    def _rate(self, index: int, operations: list[Operation], rates: list[Tensor], root: Tensor) -> Tensor:
        """r of the next diagonal factor, (batch,), with u held fixed in the gradient."""
        index += len(self._stages)
        kept = self.starts.vector(index, root.shape[1:], root.dtype, root.device)
        with torch.no_grad():
            fixed = [op.detach() if isinstance(op, LinearMap) else op for op in operations]
            u = _ascended(fixed, rates, root, kept, self.refinements)
        self.starts.keep(index, u)
        quick = _total(_pull_back(operations, root * u), rates)

        def refined() -> Tensor:
            part = [Diagonal(*(t[:FEW] for t in op)) if isinstance(op, Diagonal) else op for op in fixed]
            some = [rate[:FEW] for rate in rates]
            better = _ascended(part, some, root[:FEW], u[:FEW], MANY)
            return _total(_pull_back(part, root[:FEW] * better), some)

        return quick * self.starts.shortfall(index, quick, refined)


def _ascended(operations: list[Operation], rates: list[Tensor], root: Tensor, u: Tensor, steps: int) -> Tensor:
    """Unit u (batch, *shape), ``steps`` fixed-point steps from a given one."""
    u = _unit(u * root)
    for _ in range(steps):
        sources = _pull_back(operations, root * u)
        tangents = [_unit(a) * r.reshape(-1, *[1] * (a.ndim - 1)) for a, r in zip(sources, rates, strict=True)]
        u = _unit(root * _push_forward(operations, tangents))
    return u


def _pull_back(operations: list[Operation], y: Tensor) -> list[Tensor]:
    """(G_{←j} R_j^½)ᵀ y for the input and every diagonal factor j, in the order of the factors."""
    found = []
    for operation in reversed(operations):
        if isinstance(operation, Diagonal):
            found.append(operation.root * y)
            y = operation.centre * y
        else:
            y = operation.apply(y) if isinstance(operation, Rotation) else operation.adjoint(y)
    return [y, *reversed(found)]


def _push_forward(operations: list[Operation], tangents: list[Tensor]) -> Tensor:
    """Σ_j G_{←j} R_j^½ t_j."""
    x, rest = tangents[0], iter(tangents[1:])
    for operation in operations:
        if isinstance(operation, Diagonal):
            x = operation.centre * x + operation.root * next(rest)
        else:
            x = operation.apply(x) if isinstance(operation, Rotation) else operation.forward(x)
    return x


def _total(sources: list[Tensor], rates: list[Tensor]) -> Tensor:
    """Σ_j ‖a_j‖ r_j, (batch,)."""
    norms = [torch.linalg.vector_norm(a.flatten(1), dim=1) for a in sources]
    return torch.stack([n * r for n, r in zip(norms, rates, strict=True)]).sum(0)


def _unit(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    return x / norm.reshape(-1, *[1] * (x.ndim - 1))
