"""`masked_spectral_norm`: check, choose a method, run it, round outward, make the result differentiable."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError, NonFiniteError, UnknownMethodError
from lirpa_lip.norms.deterministic import DENSE_LIMIT, deterministic, reduced_order
from lirpa_lip.norms.gradient import differentiable, needs_gradient
from lirpa_lip.norms.lanczos import estimate
from lirpa_lip.norms.linear_map import LinearMap
from lirpa_lip.norms.power import power
from lirpa_lip.norms.probabilistic import probabilistic
from lirpa_lip.norms.problem import Problem, prepare
from lirpa_lip.norms.result import NormResult

CERTIFICATES = ("auto", "deterministic", "probabilistic", "estimate")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a solver may ask for beside the problem."""

    delta: float
    rtol: float
    max_iterations: int
    start: Tensor | None
    generator: torch.Generator | None
    dense_limit: int
    want_vectors: bool


def _lanczos(problem: Problem, s: Settings) -> NormResult:
    start = None if s.start is None else _start_vector(problem, s.start)
    return estimate(problem, start, s.rtol, s.max_iterations, s.generator, s.want_vectors)


def _power(problem: Problem, s: Settings) -> NormResult:
    start = None if s.start is None else s.start.to(problem.map.dtype).expand(problem.size, *problem.map.in_shape)
    return power(problem, start, s.max_iterations, s.generator)


def _polynomial(problem: Problem, s: Settings) -> NormResult:
    return probabilistic(problem, s.delta, s.rtol, s.max_iterations, s.generator, s.want_vectors)


def _cholesky(problem: Problem, s: Settings) -> NormResult:
    return deterministic(problem, s.dense_limit, s.generator, s.want_vectors)


#: Every solver: name -> (certificate it gives, function). A new solver is one file and one row here.
SOLVERS = {
    "power": ("estimate", _power),
    "lanczos": ("estimate", _lanczos),
    "polynomial": ("probabilistic", _polynomial),
    "cholesky": ("deterministic", _cholesky),
}


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
    vectors: bool = False,
) -> NormResult:
    """Largest singular value of ``diag(mask_out[b]) A diag(mask_in[b])`` for each sample b of a batch.

    Args:
        linear_map: the map A, shared by the samples or one per sample.
        mask_in: ``(B, *in_shape)``, non-negative scales, or ``None`` for ones.
        mask_out: ``(B, *out_shape)``, non-negative scales, or ``None`` for ones.
        method: a key of ``SOLVERS``, or ``"auto"`` for the best one of the certificate asked for.
        certificate: ``"deterministic"``, ``"probabilistic"``, ``"estimate"`` (no bound; to be asked for by name), or
            ``"auto"``: deterministic where entries are at hand and the smaller side, without what is eliminated, is at
            most ``dense_limit``, else probabilistic.
        delta: failure probability of each sample's bound in this one call. A certificate of one sample made of n norms
            fails with probability at most n * delta: whoever combines norms splits its own budget among them.
        rtol: relative accuracy at which to stop: of an estimate, its estimated error; of a probabilistic bound,
            ``upper / lower - 1``.
        max_iterations: applications of the pair (A, Aᵀ), at most. A probabilistic bound stays valid, if wider.
        start: ``(B or 1, *in_shape)``, start of an estimate. A certificate draws its own fresh start and ignores it.
        generator: source of random starts.
        dense_limit: largest order of a Gram matrix to be formed where entries must be asked for one by one.
        vectors: return singular vectors even where no gradient needs them.

    Returns:
        a `NormResult` in the dtype of the map, differentiable in the map's tensors and the masks.

    Raises:
        ShapeError, NonFiniteError, ConfigError: bad input, each with a remedy.
    """
    masked, problem = prepare(linear_map, mask_in, mask_out)
    _check(certificate, delta, rtol, max_iterations)
    gradient = needs_gradient(masked)
    settings = Settings(delta, rtol, max_iterations, start, generator, dense_limit, vectors or gradient)
    with torch.no_grad():
        solver = SOLVERS[_choose(problem, method, certificate, dense_limit)][1]
        result = _rounded(solver(problem, settings), problem.map.dtype)
    if bool(result.lower.isnan().any() | result.upper.isnan().any()):
        raise NonFiniteError("a spectral norm", "the map gave NaN or infinity: check its weights and its dtype's range")
    return differentiable(masked, result) if gradient else result


def _check(certificate: str, delta: float, rtol: float, max_iterations: int) -> None:
    if certificate not in CERTIFICATES:
        raise UnknownMethodError(certificate, CERTIFICATES, "certificate")
    if not 0 < delta < 1:
        raise ConfigError(f"delta={delta} must lie strictly between 0 and 1.")
    if not 0 < rtol:
        raise ConfigError(f"rtol={rtol} must be positive.")
    if max_iterations < 1:
        raise ConfigError(f"max_iterations={max_iterations} must be at least 1.")


def _choose(problem: Problem, method: str, certificate: str, limit: int) -> str:
    if method != "auto":
        if method not in SOLVERS:
            raise UnknownMethodError(method, ("auto", *SOLVERS), "norm method")
        kind = SOLVERS[method][0]
        if certificate != kind and (certificate != "auto" or kind == "estimate"):
            raise ConfigError(f"method={method!r} gives certificate={kind!r}; ask for that, not {certificate!r}.")
        return method
    if certificate == "auto":
        small = problem.map.cheap_entries and reduced_order(problem) <= limit
        certificate = "deterministic" if small else "probabilistic"
    return {"deterministic": "cholesky", "probabilistic": "polynomial", "estimate": "lanczos"}[certificate]


def _start_vector(problem: Problem, start: Tensor) -> Tensor:
    """A start given on the input side, moved to the side the iterations run on; ``(B, numel)``."""
    linear_map = problem.map
    start = start.detach().to(linear_map.dtype).expand(problem.size, *linear_map.in_shape)
    start = start if problem.mask_in is None else start * (problem.mask_in != 0)
    if problem.on_input:
        return start.flatten(1)
    image = linear_map.forward(start if problem.mask_in is None else start * problem.mask_in)
    return (image if problem.mask_out is None else image * problem.mask_out).flatten(1)


def _rounded(result: NormResult, dtype: torch.dtype) -> NormResult:
    """The result in the map's precision; bounds are rounded outward."""

    def cast(value: Tensor, direction: float) -> Tensor:
        near = value.to(dtype)
        wrong = (near.to(value.dtype) - value) * direction < 0
        return torch.where(wrong, torch.nextafter(near, torch.full_like(near, direction * torch.inf)), near)

    left, right = (None if vector is None else vector.to(dtype) for vector in (result.left, result.right))
    bounds = {"lower": cast(result.lower, -1.0), "upper": cast(result.upper, 1.0)} if result.certified else {}
    return dataclasses.replace(result, left=left, right=right, **bounds)
