"""`masked_spectral_norm`: choose a solver, run it, make its values differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError, UnknownMethodError
from lirpa_lip.norms.lanczos import lanczos
from lirpa_lip.norms.linear_map import LinearMap
from lirpa_lip.norms.probabilistic import a_priori_factor, polynomial_root, start_component
from lirpa_lip.norms.problem import Problem, prepare
from lirpa_lip.norms.result import NormResult

#: Largest order of a dense Gram matrix that "auto" forms for a deterministic answer.
DENSE_LIMIT = 1024

#: Relative outward margin of float64 eigenvalues, per unit of matrix order.
_EPS = torch.finfo(torch.float64).eps


def masked_spectral_norm(
    linear_map: LinearMap,
    mask_in: Tensor | None = None,
    mask_out: Tensor | None = None,
    method: str = "auto",
    certificate: str = "auto",
    delta: float = 1e-6,
    rtol: float = 1e-3,
    max_iterations: int = 100,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    dense_limit: int = DENSE_LIMIT,
) -> NormResult:
    """Largest singular value of ``diag(mask_out[b]) A diag(mask_in[b])`` for each sample b of a batch.

    Args:
        linear_map: the map A, shared by the samples or one per sample.
        mask_in: ``(B, *in_shape)``, non-negative, or ``None`` for ones.
        mask_out: ``(B, *out_shape)``, non-negative, or ``None`` for ones.
        certificate: ``"deterministic"``, ``"probabilistic"``, ``"estimate"`` (no bound; ask for it by name), or
            ``"auto"``: deterministic where the order of the smaller Gram matrix of what is not eliminated is at most
            ``dense_limit``, else probabilistic.
        delta: failure probability of each sample's bound, for this one call. A certificate made of n norms fails with
            probability at most n * delta: whoever combines norms splits its own budget.
        rtol: stop when upper / lower <= 1 + rtol (certificates).
        max_iterations: applications of (A, Aᵀ), at most.
        start: ``(B, *in_shape)``, start of an estimate. Certificates draw a fresh random start and ignore it.
        generator: source of the random start.

    Raises:
        ShapeError, NonFiniteError, ConfigError: bad input.
    """
    if certificate not in ("auto", "deterministic", "probabilistic", "estimate"):
        raise UnknownMethodError(certificate, ("auto", "deterministic", "probabilistic", "estimate"), "certificate")
    if not 0 < delta < 1:
        raise ConfigError(f"delta={delta} must lie strictly between 0 and 1.")
    masked, problem = prepare(linear_map, mask_in, mask_out)
    with torch.no_grad():
        if certificate == "auto":
            small = linear_map.cheap_entries and _reduced_order(problem) <= dense_limit
            certificate = "deterministic" if small else "probabilistic"
        if certificate == "deterministic":
            result = _deterministic(problem.to(torch.float64))
        elif certificate == "probabilistic":
            result = _probabilistic(problem.to(torch.float64), delta, rtol, max_iterations, generator)
        else:
            result = _estimate(problem, min(max_iterations, 40), start, generator)
        result = _cast(result, problem.operator.dtype)
    return _differentiable(masked, result)


def _reduced_order(problem: Problem) -> int:
    rows = problem.operator.out_numel if problem.mask_out is None else int((problem.mask_out != 0).flatten(1).sum(1).max())
    columns = problem.operator.in_numel if problem.mask_in is None else int((problem.mask_in != 0).flatten(1).sum(1).max())
    return min(rows, columns)


def _deterministic(problem: Problem) -> NormResult:
    """Each sample's reduced matrix, its Gram matrix on the smaller side, float64 eigenvalues with a rounding margin."""
    operator, sigma, lefts, rights = problem.operator, [], [], []
    for b in range(problem.size):
        one = problem.select(torch.tensor([b], device=operator.device))
        rows = _active_index(one.mask_out, operator.out_numel, operator.device)
        columns = _active_index(one.mask_in, operator.in_numel, operator.device)
        left = torch.zeros(operator.out_numel, dtype=torch.float64, device=operator.device)
        right = torch.zeros(operator.in_numel, dtype=torch.float64, device=operator.device)
        value = left.new_zeros(2)
        if len(rows) and len(columns):
            matrix = one.operator.entries(rows, columns)
            u, v, value = _top_singular(matrix)
            left[rows], right[columns] = u, v
        sigma.append(value)
        lefts.append(left)
        rights.append(right)
    bounds = torch.stack(sigma)
    return NormResult(
        bounds[:, 0],
        bounds[:, 1],
        "deterministic",
        0.0,
        1,
        torch.stack(lefts).reshape(-1, *operator.out_shape),
        torch.stack(rights).reshape(-1, *operator.in_shape),
    )


def _top_singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = matrix.shape[0] <= matrix.shape[1]
    small = matrix if wide else matrix.mT
    values, vectors = torch.linalg.eigh(small @ small.mT)
    # |fl(BBᵀ) - BBᵀ| <= n eps |B||B|ᵀ, of norm <= n eps |B|_F^2; eigh is backward stable: c order eps |G|_2.
    margin = (2 * small.shape[1] + 16 * small.shape[0]) * _EPS * matrix.square().sum()
    upper = (values[-1].clamp(min=0) + margin).sqrt()
    u = vectors[:, -1]
    v = small.mT @ u
    lower = v.norm()
    v = v / lower.clamp(min=torch.finfo(v.dtype).tiny)
    return (u, v, torch.stack([lower, upper])) if wide else (v, u, torch.stack([lower, upper]))


def _active_index(mask: Tensor | None, numel: int, device: torch.device) -> Tensor:
    return torch.arange(numel, device=device) if mask is None else mask.flatten().nonzero().squeeze(1)


def _random_start(problem: Problem, generator: torch.Generator | None) -> Tensor:
    operator = problem.operator
    shape = (problem.size, problem.numel)
    return torch.randn(shape, dtype=operator.dtype, device=operator.device, generator=generator) * problem.active()


def _probabilistic(
    problem: Problem, delta: float, rtol: float, steps: int, generator: torch.Generator | None
) -> NormResult:
    active = problem.active()
    start = _random_start(problem, generator)
    steps = max(1, min(steps, problem.numel))
    run = lanczos(problem, start, steps)
    ritz, vector = run.ritz()
    gamma = start_component(delta, active.sum(1).to(ritz.dtype).expand(problem.size)) * 0.99
    outward = ritz * (1 + 1e-12 * steps)
    bound = outward * a_priori_factor(gamma, steps)
    bound = torch.where(run.beta[:, -1] > 0, polynomial_root(run.alpha, run.beta, outward, bound, gamma), outward)
    upper = torch.where(start.norm(dim=1) > 0, bound, 0.0).sqrt()
    left, right, lower = _vectors(problem, vector)
    return NormResult(lower, upper, "probabilistic", delta, steps, left, right)


def _estimate(problem: Problem, steps: int, start: Tensor | None, generator: torch.Generator | None) -> NormResult:
    operator = problem.operator
    if start is None:
        begin = _random_start(problem, generator)
    else:
        begin = start.to(operator.dtype).expand(problem.size, *operator.in_shape)
        begin = begin.flatten(1) if problem.on_input else operator.forward(begin).flatten(1)
        begin = begin * problem.active()
        begin = torch.where(begin.norm(dim=1, keepdim=True) > 0, begin, _random_start(problem, generator))
    steps = max(1, min(steps, problem.numel))
    _, vector = lanczos(problem, begin, steps).ritz()
    left, right, lower = _vectors(problem, vector)
    return NormResult(lower, lower, "estimate", float("nan"), steps, left, right)


def _vectors(problem: Problem, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left and right unit vectors from the Ritz vector, and the singular value ``|A v|`` they show."""
    operator = problem.operator
    tiny = torch.finfo(vector.dtype).tiny
    vector = vector / vector.norm(dim=1, keepdim=True).clamp(min=tiny)
    if problem.on_input:
        right = vector.reshape(-1, *operator.in_shape)
        left = operator.forward(right)
        sigma = left.flatten(1).norm(dim=1)
        return _scaled(left, sigma), right, sigma
    left = vector.reshape(-1, *operator.out_shape)
    right = operator.adjoint(left)
    sigma = right.flatten(1).norm(dim=1)
    return left, _scaled(right, sigma), sigma


def _scaled(tensor: Tensor, norm: Tensor) -> Tensor:
    return tensor / norm.clamp(min=torch.finfo(norm.dtype).tiny).reshape(-1, *[1] * (tensor.ndim - 1))


def _cast(result: NormResult, dtype: torch.dtype) -> NormResult:
    """The result in the map's precision, certificates rounded outward."""
    def round_to(value: Tensor, direction: float) -> Tensor:
        cast = value.to(dtype)
        if direction == 0 or cast.dtype == value.dtype:
            return cast
        wrong = (cast.to(value.dtype) - value) * direction < 0
        return torch.where(wrong, torch.nextafter(cast, torch.full_like(cast, direction * torch.inf)), cast)

    outward = 0.0 if result.certificate == "estimate" else 1.0
    return NormResult(
        round_to(result.lower, -outward),
        round_to(result.upper, outward),
        result.certificate,
        result.failure_probability,
        result.iterations,
        None if result.left is None else result.left.to(dtype),
        None if result.right is None else result.right.to(dtype),
    )


def _differentiable(masked: LinearMap, result: NormResult) -> NormResult:
    """``upper`` and ``lower`` times ``s / s.detach()`` with ``s = left . A right``, the vectors held fixed."""
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in masked.tensors()):
        return result
    s = (result.left * masked.forward(result.right)).flatten(1).sum(1)
    alive = s.detach() > 0
    relative = torch.where(alive, s, 1.0) / torch.where(alive, s.detach(), 1.0)
    return NormResult(
        result.lower * relative,
        result.upper * relative,
        result.certificate,
        result.failure_probability,
        result.iterations,
        result.left,
        result.right,
    )
