"""Start vectors for training: shared by all samples, so that nothing is stored per training image.

Leading singular vectors of samples with similar masks are similar. A `SharedStart` keeps those of the last few
batches of one map, with their masks, in a ring of fixed size. A new sample weighs the ring by the likeness of masks,
and starts from the first principal direction of the weighted vectors, taken on its own mask. Two Lanczos steps from
there reach what the published code keeps a vector per training image and layer for (22.7 GB for CIFAR-10, 6C2F). The
ring follows the weights as they train, since every batch's improved vectors enter it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError
from lirpa_lip.norms.problem import Problem, unit

#: Coordinates of either mask that likeness is judged by.
FEATURES = 2048

#: Weight of a ring entry: exp(-SHARPNESS * distance / standard deviation of the distances).
SHARPNESS = 3.0

#: Power steps for the principal direction, on matrices of the ring's size.
PRINCIPAL_STEPS = 3


class SharedStart:
    """Start vectors of one map, learnt from the batches that went before; give it as ``start`` of every call.

    Args:
        capacity: samples kept, at most; each takes one input-shaped vector and some thousand mask entries.
        first_iterations: iterations of the first call, at least, when there is nothing to start from.

    Raises:
        ConfigError: ``capacity`` is below 1; or, of a call, it is used for another map, or with other masks given.
    """

    def __init__(self, capacity: int = 64, first_iterations: int = 12) -> None:
        if capacity < 1:
            raise ConfigError(f"capacity={capacity} must be at least 1.")
        self.capacity, self.first_iterations = capacity, first_iterations
        self.vectors: Tensor | None = None
        self.features: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.vectors is None else len(self.vectors)

    @torch.no_grad()
    def vector(self, problem: Problem) -> Tensor | None:
        """``(B, *in_shape)``: a start for each sample; ``None`` while the ring is empty."""
        if self.vectors is None or self.features is None:
            return None
        ring = self.vectors.to(problem.map.device, problem.map.dtype)
        if ring.shape[1:] != (problem.map.in_numel,):
            raise ConfigError("a SharedStart belongs to one map; make one for each layer.")
        features = _features(problem)
        kept = self.features.to(features.device, features.dtype)
        if kept.shape[1] != features.shape[1]:
            raise ConfigError("a SharedStart needs the same masks given, or left out, at every call.")
        distance = torch.cdist(features, kept) ** 2
        spread = distance.std().clamp(min=torch.finfo(distance.dtype).tiny) if distance.numel() > 1 else 1.0
        weight = torch.softmax(-SHARPNESS * distance / spread, 1)
        return (self._principal(ring, weight) @ ring).reshape(-1, *problem.map.in_shape)

    @staticmethod
    def _principal(ring: Tensor, weight: Tensor) -> Tensor:
        """Coefficients, ``(B, K)``, of the principal direction of the rows of ``diag(sqrt(weight_b)) ring``."""
        gram, root = ring @ ring.mT, weight.sqrt()
        # Begins with the sample of the most similar mask; its sign settles that of the others.
        coefficient = root * gram[weight.argmax(1)]
        for _ in range(PRINCIPAL_STEPS):
            coefficient = unit(root * ((root * coefficient) @ gram))
        return root * coefficient

    @torch.no_grad()
    def update(self, problem: Problem, right: Tensor) -> None:
        """Take in the right singular vectors of a batch, ``(B, *in_shape)``; the oldest leave."""
        fresh = right.detach().flatten(1)
        alive = fresh.norm(dim=1) > 0
        fresh, features = fresh[alive][: self.capacity], _features(problem)[alive][: self.capacity]
        if self.vectors is not None and self.features is not None:
            fresh = torch.cat([fresh, self.vectors.to(fresh)])[: self.capacity]
            features = torch.cat([features, self.features.to(features)])[: self.capacity]
        if len(fresh):
            self.vectors, self.features = fresh, features

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors to be saved with a checkpoint; empty while the ring is."""
        if self.vectors is None or self.features is None:
            return {}
        return {"vectors": self.vectors, "features": self.features}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.vectors, self.features = state.get("vectors"), state.get("features")


def _features(problem: Problem) -> Tensor:
    """An evenly spaced choice of the entries of both masks, ``(B, at most 2 * FEATURES)``, at least one column."""
    parts = [torch.ones(problem.size, 1, dtype=problem.map.dtype, device=problem.map.device)]
    for mask in (problem.mask_in, problem.mask_out):
        if mask is not None:
            flat = mask.flatten(1)
            # An odd stride does not fall in step with channels and rows of even length.
            parts.append(flat[:, :: (flat.shape[1] // FEATURES) | 1])
    return torch.cat(parts, 1)
