"""Lanczos on the Gram operator of every sample of a batch at once.

``T = VᵀGV`` is tridiagonal, with ``alpha`` on and ``beta`` beside its diagonal, and its top eigenvalue, the Ritz
value, rises to that of G from below. Only the top one is wanted, so nothing is reorthogonalised: the loss of
orthogonality sets in when a Ritz value has converged and brings copies of it, never a value beyond the spectrum (C.
C. Paige, *Accuracy and effectiveness of the Lanczos algorithm*, Linear Algebra Appl. 34, 1980). Samples that have
converged leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lirpa_lip.errors import NonFiniteError
from lirpa_lip.norms.draw import Source, normal
from lirpa_lip.norms.kernels.reference import reciprocal
from lirpa_lip.norms.kernels.registry import backend
from lirpa_lip.norms.problem import Problem, unit
from lirpa_lip.norms.step_pair import StepPair, pair_for

#: Lanczos vectors are kept while they take at most this many times the larger activation; past it, they are made anew.
BASIS_ACTIVATIONS = 4

#: Relative distance within which two top eigenvalues of T are copies of one.
COPY = 1e-6

#: Steps at which convergence is looked at: each costs an eigendecomposition of T.
CHECKS = (2, 4, 6, 8, 11, 14, 18, 22, 27, 33, 40, 48, 58, 70, 84, 100, 120)


class Recurrence:
    """The three-term recurrence of the samples still in the batch.

    It runs on ``scale * G``, since squares of G's values may leave the range of float32.

    Attributes:
        index: ``(b,)``, positions in the first batch of the samples still here.
        alpha, beta: ``(b, k)``, float64; ``beta[:, -1]`` is the norm of the last residual. Zeros past an invariant
            subspace.
    """

    def __init__(self, problem: Problem, start: Tensor, keep_basis: bool) -> None:
        self.problem, self.start = problem, unit(start)
        self.index = torch.arange(problem.size, device=start.device)
        self.scale = torch.zeros(problem.size, dtype=start.dtype, device=start.device)
        self.last_top = torch.full_like(self.scale, -torch.inf, dtype=torch.float64)
        self._restart()
        self.alphas: list[Tensor] = []
        self.betas: list[Tensor] = []
        room = BASIS_ACTIVATIONS * max(problem.map.in_numel, problem.map.out_numel) // problem.numel
        self.room = room if keep_basis else 0
        self.basis: list[Tensor] = []
        self.pair: StepPair | None = None
        self.known: tuple[Tensor, Tensor] | None = None

    def _restart(self) -> None:
        self.v, self.v_prev = self.start, torch.zeros_like(self.start)
        self.beta_last = torch.zeros_like(self.scale)

    @property
    def steps(self) -> int:
        return len(self.alphas)

    @property
    def complete(self) -> bool:
        """Whether all vectors were kept."""
        return 0 < self.steps == len(self.basis)

    @property
    def alpha(self) -> Tensor:
        return self._coefficients()[0]

    @property
    def beta(self) -> Tensor:
        return self._coefficients()[1]

    def _coefficients(self) -> tuple[Tensor, Tensor]:
        if self.known is None or self.known[0].shape[1] != self.steps:
            unscale = reciprocal(self.scale.double()).unsqueeze(1)
            alpha, beta = (torch.stack(values, 1).double() * unscale for values in (self.alphas, self.betas))
            self.known = alpha, beta
        return self.known

    def advance(self) -> None:
        """One step: one application of the pair (A, Aᵀ)."""
        if self.steps < self.room:
            self.basis.append(self.v)
        else:
            self.basis.clear()
        z = self.problem.gram_without_last_mask(self.v)
        if self.steps == 0:
            self.scale = _scale(z)
        alpha, beta = self._step(z)
        self.alphas.append(alpha)
        self.betas.append(beta)

    def advance_to(self, steps: int) -> None:
        """Steps until there have been so many, two at a time where they are recorded."""
        while self.steps < steps:
            if self.pair is None and self.steps > 0:
                self.pair = pair_for(self, steps - self.steps)
            if self.pair is None or self.steps < self.room or self.steps + 2 > steps:
                self.advance()
            else:
                self.basis.clear()
                self.pair.advance(self)

    def _step(self, z: Tensor) -> tuple[Tensor, Tensor]:
        step = backend(z.device).lanczos_step
        v_next, alpha, beta = step(z, self.problem.outer, self.scale, self.v, self.v_prev, self.beta_last)
        self.v_prev, self.v, self.beta_last = self.v, v_next, beta
        return alpha, beta

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of T ``(b, k)``, rising, and its top eigenvector ``(b, k)``, in float64 from the CPU's LAPACK."""
        alpha, off = self.alpha.cpu(), self.beta[:, :-1].cpu()
        if not bool(alpha.isfinite().all() and off.isfinite().all()):
            raise NonFiniteError("a spectral norm", "check the map's values and the range of its dtype")
        # a few samples at a time: for narrow layers, k x k values a sample are more than their activations
        chunk = max(1, self.v.numel() // (8 * alpha.shape[1] ** 2))
        parts = [_eigen(*part) for part in zip(alpha.split(chunk), off.split(chunk), strict=True)]
        values, top = (torch.cat(found) for found in zip(*parts, strict=True))
        if values.shape[1] > 1:
            copied = values[:, -1] - values[:, -2] <= COPY * values[:, -1]
            for sample in copied.nonzero().flatten().tolist():
                top[sample] = _before_copies(_matrix(alpha[sample], off[sample]), values[sample, -1])
        return values.to(self.v.device), top.to(self.v.device)

    def combine(self, coefficients: Tensor) -> Tensor:
        """``sum_j c_j v_j``, ``(b, k) -> (b, n)``; runs the recurrence, again where its vectors were not kept.

        It ends the recurrence, whose last vectors are let go.
        """
        coefficients = coefficients.to(self.start.dtype)
        total = torch.zeros_like(self.start)
        if self.complete:
            for c, v in zip(coefficients.unbind(1), self.basis, strict=True):
                total.addcmul_(v, c.unsqueeze(1))
            return total
        self.pair = None
        self._restart()
        for j, c in enumerate(coefficients.unbind(1)):
            total.addcmul_(self.v, c.unsqueeze(1))
            z = self.problem.gram_without_last_mask(self.v)
            if j == 0:
                self.scale = _scale(z)
            self._step(z)
        return total

    def split(self, leave: Tensor, stay: Tensor, with_vectors: bool) -> Recurrence:
        """Takes the samples at ``leave`` out, which end here; returns their coefficients, and what `combine` needs.

        One tensor after the other, so that hardly more is alive at once than before.

        Args:
            with_vectors: whether what leaves will `combine`; its coefficients come along in any case.
        """
        part = object.__new__(Recurrence)
        part.room = self.room
        part.pair = part.known = self.pair = self.known = None
        for name in ("index", "scale", "last_top", "start", "v", "v_prev", "beta_last"):
            whole = getattr(self, name)
            if name in ("index", "scale") or (name == "start" and with_vectors):
                setattr(part, name, whole[leave])
            setattr(self, name, whole[stay])
        for name in ("alphas", "betas", "basis"):
            lists = getattr(self, name)
            setattr(part, name, [])
            for i, whole in enumerate(lists):
                if with_vectors or name != "basis":
                    getattr(part, name).append(whole[leave])
                lists[i] = whole[stay]
        before = self.problem
        if with_vectors:
            part.problem = before.select(leave)
        before.forget()
        self.problem = before.select(stay)
        return part


def _scale(image: Tensor) -> Tensor:
    """What brings the operator's norm near one, by its first image; finite where that is denormal, too."""
    return reciprocal(image.abs().amax(1)).clamp(max=1 / torch.finfo(image.dtype).tiny)


def _eigen(alpha: Tensor, off: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(_matrix(alpha, off))
    return values, vectors[:, :, -1].clone()


def _matrix(alpha: Tensor, off: Tensor) -> Tensor:
    """The tridiagonal matrix, ``(..., k), (..., k - 1) -> (..., k, k)``."""
    matrix = torch.diag_embed(alpha)
    matrix.diagonal(1, -2, -1).copy_(off)
    matrix.diagonal(-1, -2, -1).copy_(off)
    return matrix


def _before_copies(matrix: Tensor, value: Tensor) -> Tensor:
    """The top eigenvector of the first leading block that has the top eigenvalue, ``(k,)``: it has one copy of it.

    Of two copies eigenvectors are any mixture, whose Lanczos vectors may cancel.
    """
    low, high = 1, len(matrix)
    while low < high:  # by Cauchy's interlacing the top eigenvalue of the blocks rises
        middle = (low + high) // 2
        reached = torch.linalg.eigvalsh(matrix[:middle, :middle])[-1] >= value * (1 - 1e-14 * len(matrix))
        low, high = (low, middle) if bool(reached) else (middle + 1, high)
    top = torch.zeros_like(matrix[0])
    top[:low] = torch.linalg.eigh(matrix[:low, :low])[1][:, -1]
    return top


def random_start(problem: Problem, source: Source) -> Tensor:
    """``(B, numel)``: Gaussian on the coordinates that are not masked, so uniform in direction there."""
    start = normal((problem.size, problem.numel), problem.map.dtype, problem.map.device, source)
    return start if problem.outer is None else start * (problem.outer != 0)


def start_or_random(problem: Problem, start: Tensor, source: Source) -> Tensor:
    """The start, and a random one for samples whose start is 0."""
    start = start.to(problem.map.dtype)
    alive = start.norm(dim=1, keepdim=True) > 0
    return start if bool(alive.all()) else torch.where(alive, start, random_start(problem, source))


def run(
    problem: Problem,
    start: Tensor,
    done: Callable[[Recurrence, Tensor, Tensor], Tensor],
    max_steps: int,
    keep_basis: bool,
) -> Iterator[tuple[Recurrence, Tensor, Tensor]]:
    """Advance all samples; yield those that are done, in groups.

    Args:
        done: ``(recurrence, eigenvalues (b, k), top eigenvector (b, k) of T) -> (b,)`` boolean, at each check.

    Yields:
        the recurrence of a group, and the eigenvalues and the top eigenvector of its T.
    """
    state = Recurrence(problem, start, keep_basis)
    max_steps = max(1, min(max_steps, problem.numel))
    del problem, start  # the recurrence has its own
    for check in (*(step for step in CHECKS if step < max_steps), max_steps):
        state.advance_to(check)
        values, vector = state.eigen()
        if state.steps >= max_steps:
            yield state, values, vector
            return
        finished = done(state, values, vector)
        state.last_top = values[:, -1]
        leave, stay = finished.nonzero().squeeze(1), (~finished).nonzero().squeeze(1)
        if not len(stay):
            yield state, values, vector
            return
        if len(leave):
            yield state.split(leave, stay, keep_basis), values[leave], vector[leave]


class Replay:
    """The top vectors of a run, found when they are asked for: the same run once more, from the same start.

    It keeps a few numbers for each step and sample, and of the problem what is kept anyhow. Where the run's vectors
    were short enough to be kept all, their sum is, and no run is needed.

    Args:
        problem: as it was given; the run was of `form` of it.
        seed: of the start.
    """

    def __init__(self, problem: Problem, form: Callable[[Problem], Problem], seed: int) -> None:
        self.problem, self.form, self.seed = problem.bare(), form, seed
        self.runs: list[tuple[Tensor, Tensor]] = []
        self.sums: list[tuple[Tensor, Tensor]] = []

    def note(self, state: Recurrence, vector: Tensor) -> None:
        """A group of samples where they end, and the top eigenvectors of their T, ``(b, k)``."""
        if state.complete:
            self.sums.append((state.index, state.combine(vector)))
        else:
            self.runs.append((state.index, vector))

    @torch.no_grad()
    def __call__(self) -> tuple[Tensor, Tensor]:
        """Left and right singular vectors, in the shapes of the map's."""
        problem = self.form(self.problem.bare())
        top = torch.zeros(problem.size, problem.numel, dtype=problem.map.dtype, device=problem.map.device)
        for index, summed in self.sums:
            top[index] = summed
        start = random_start(problem, self.seed) if self.runs else top
        for index, coefficients in self.runs:
            part = problem if len(index) == problem.size else problem.select(index)
            top[index] = Recurrence(part, start[index], False).combine(coefficients)
        left, right, _ = problem.singular_pair(top)
        return left, right
