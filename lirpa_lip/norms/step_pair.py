"""Two steps of the Lanczos recurrence on fixed tensors: what a CUDA graph can hold.

After two steps the two vectors have changed places twice, so that the same recording serves for every pair of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lirpa_lip.norms.kernels.recording import Recorder, recorder
from lirpa_lip.norms.kernels.registry import backend
from lirpa_lip.norms.linear_map import ConvMap, ConvTransposeMap, DenseMap
from lirpa_lip.norms.maps.sparse import SparseMap
from lirpa_lip.norms.problem import Problem

#: Maps that are known to run without the CPU's knowledge of any value.
RECORDABLE = (DenseMap, ConvMap, ConvTransposeMap, SparseMap)

#: Steps to go, at least, for a recording to be made.
WORTHWHILE = 4


class State(Protocol):
    """What two steps read and leave of a recurrence, `lirpa_lip.norms.lanczos.Recurrence`."""

    problem: Problem
    start: Tensor
    scale: Tensor
    v: Tensor
    v_prev: Tensor
    beta_last: Tensor
    alphas: list[Tensor]
    betas: list[Tensor]


def pair_for(state: State, steps: int) -> StepPair | None:
    """A recording for the next steps, where there are enough of them and they can be recorded."""
    how = recorder(state.start.device)
    if how is None or steps < WORTHWHILE or not isinstance(state.problem.map, RECORDABLE):
        return None
    return StepPair(state, how)


class StepPair:
    """Two steps, recorded at the first call.

    Args:
        state: a recurrence past its first step, whose samples stay the same as long as this is used.
    """

    def __init__(self, state: State, how: Recorder) -> None:
        self._how = how
        self._vectors = (torch.empty_like(state.v), torch.empty_like(state.v))
        self._beta_last = torch.empty_like(state.beta_last)
        self._alphas, self._betas = (torch.empty(2, len(state.v)).to(state.beta_last) for _ in range(2))
        self._problem, self._scale = state.problem, state.scale
        self._replay: Callable[[], None] | None = None

    def _run(self) -> None:
        step = backend(self._scale.device).lanczos_step
        v, v_prev = self._vectors
        for slot in range(2):
            z = self._problem.gram_without_last_mask(v)
            _, alpha, beta = step(z, self._problem.outer, self._scale, v, v_prev, self._beta_last, out=v_prev)
            self._beta_last.copy_(beta)
            self._alphas[slot].copy_(alpha)
            self._betas[slot].copy_(beta)
            v, v_prev = v_prev, v

    def advance(self, state: State) -> None:
        """As two calls of `Recurrence.advance`."""
        v, v_prev = self._vectors
        if state.v is not v:
            v_prev.copy_(state.v_prev)  # first: after a single step in between, that is the other of the two
            v.copy_(state.v)
            self._beta_last.copy_(state.beta_last)
        if self._replay is None:
            self._replay = self._how(self._run)
        else:
            self._replay()
        state.v, state.v_prev, state.beta_last = v, v_prev, self._beta_last
        state.alphas.extend(self._alphas.clone().unbind(0))
        state.betas.extend(self._betas.clone().unbind(0))
