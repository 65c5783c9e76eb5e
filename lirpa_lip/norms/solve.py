"""`masked_spectral_norm`: check, choose a method, run it, round outward, make the result differentiable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError, NonFiniteError, UnknownMethodError
from lirpa_lip.norms.balance import solve_in_range
from lirpa_lip.norms.deterministic import deterministic, work
from lirpa_lip.norms.draw import SEED_BITS, Source, fresh_seed, seed_from
from lirpa_lip.norms.estimate import estimate
from lirpa_lip.norms.gradient import differentiable, needs_gradient
from lirpa_lip.norms.linear_map import LinearMap
from lirpa_lip.norms.loose import gram_bounds, loose_result
from lirpa_lip.norms.power import power
from lirpa_lip.norms.powers import outward, times_power
from lirpa_lip.norms.probabilistic import probabilistic
from lirpa_lip.norms.problem import Problem, prepare
from lirpa_lip.norms.reduce import SMALL_SIDE, active_counts, few_rows
from lirpa_lip.norms.result import NormResult, Want, combined
from lirpa_lip.norms.schur import schur_bound
from lirpa_lip.norms.simplify import simplify
from lirpa_lip.norms.start import SharedStart
from lirpa_lip.precision import true_float32
from lirpa_lip.results import Certificate, Kind

CERTIFICATES = ("auto", "deterministic", "probabilistic", "estimate")

#: Floating-point operations per sample that "auto" spends on a deterministic bound: a quarter of a second on one core.
WORK_LIMIT = 1e10


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a solver may ask for beside the problem."""

    delta: float
    rtol: float
    max_iterations: int
    start: Tensor | None
    source: Source
    want: Want


@dataclasses.dataclass(frozen=True)
class Solver:
    """A method: what its answer is worth, the function that finds it, and the exponents it takes as they are given."""

    certificate: Kind
    run: Callable[[Problem, Settings], NormResult]
    given: int | None = None


def _power(problem: Problem, s: Settings) -> NormResult:
    start = None if s.start is None else s.start.to(problem.map.dtype)
    return power(problem, start, s.max_iterations, s.source)


def _lanczos(problem: Problem, s: Settings) -> NormResult:
    start = None if s.start is None else problem.start_vector(s.start)
    return estimate(problem, start, s.rtol, s.max_iterations, s.source, want=s.want)


def _polynomial(problem: Problem, s: Settings) -> NormResult:
    return probabilistic(problem, s.delta, s.rtol, s.max_iterations, s.source, want=s.want)


def _cholesky(problem: Problem, s: Settings) -> NormResult:
    return deterministic(problem, s.source, s.want)


def _gram(problem: Problem, s: Settings) -> NormResult:
    return loose_result(problem, gram_bounds, s.rtol, s.max_iterations, s.source, want=s.want)


def _schur(problem: Problem, s: Settings) -> NormResult:
    return loose_result(problem, schur_bound, s.rtol, s.max_iterations, s.source, want=s.want)


#: Every solver by name. A new one is one file and one row here; the order is that of the docs.
SOLVERS = {
    "power": Solver("estimate", _power, 8),
    "lanczos": Solver("estimate", _lanczos),
    "polynomial": Solver("probabilistic", _polynomial),
    "cholesky": Solver("deterministic", _cholesky),
    "gram": Solver("deterministic", _gram),
    "schur": Solver("deterministic", _schur),
}

#: The solver that ``method="auto"`` runs for each certificate.
BEST = {"estimate": "lanczos", "probabilistic": "polynomial", "deterministic": "cholesky"}


def masked_spectral_norm(
    linear_map: LinearMap,
    mask_in: Tensor | None = None,
    mask_out: Tensor | None = None,
    method: str = "auto",
    certificate: str = "auto",
    *,
    delta: float = 1e-6,
    rtol: float = 1e-3,
    max_iterations: int = 100,
    start: Tensor | SharedStart | None = None,
    generator: torch.Generator | None = None,
    vectors: bool = False,
    work_limit: float = WORK_LIMIT,
    seed: int | None = None,
) -> NormResult:
    """Largest singular value of ``diag(mask_out[b]) A diag(mask_in[b])`` for each sample b of a batch.

    Args:
        linear_map: the map A, shared by the samples or one per sample.
        mask_in: ``(B, *in_shape)``, non-negative scales, or ``None`` for ones; taken in the dtype of the map.
        mask_out: ``(B, *out_shape)``, likewise.
        method: a key of ``SOLVERS``, or ``"auto"`` for the best one of the certificate asked for.
        certificate: ``"deterministic"``, ``"probabilistic"``, ``"estimate"`` (no bound; to be asked for by name), or
            ``"auto"``: deterministic where that takes at most ``work_limit`` operations per sample, else
            probabilistic.
        delta: failure probability of each sample's bound in this one call. A certificate of one sample made of n norms
            fails with probability at most n * delta: whoever combines norms splits its own budget among them.
        rtol: relative accuracy at which to stop: of an estimate, its estimated error; of a probabilistic bound,
            ``upper / lower - 1``. Deterministic bounds are as tight as their method gives.
        max_iterations: applications of the pair (A, Aᵀ), at most. A probabilistic bound stays valid, if wider.
        start: of an estimate: ``(B or 1, *in_shape)``, or a `SharedStart` that learns from call to call. A certificate
            draws its own fresh start and ignores this one.
        generator: source of random starts, or of their seed. Without one an estimate draws from torch's global
            generator, a probabilistic bound takes a seed from the operating system's entropy, on which nothing given
            here can depend, and a deterministic one, which is true of any start, the same at every call.
        vectors: return singular vectors even where no gradient needs them.
        work_limit: see ``certificate``.
        seed: the ``seed`` of an earlier result, whose run is repeated. Its failure probability is that of the earlier
            one; nothing is left to chance twice.

    Returns:
        a `NormResult` in the dtype of the map, differentiable in the map's tensors and the masks.

    Raises:
        ShapeError, NonFiniteError, ConfigError: bad input, each with a remedy.

    Example:
        >>> from lirpa_lip.norms.linear_map import DenseMap
        >>> keep = torch.tensor([[1.0, 1.0], [1.0, 0.0]])  # two samples; the second has lost an input
        >>> found = masked_spectral_norm(DenseMap(torch.tensor([[3.0, 0.0], [0.0, 4.0]])), mask_in=keep)
        >>> [round(v, 3) for v in found.upper.tolist()], found.certificate
        ([4.0, 3.0], 'deterministic')
    """
    masked, problem = prepare(linear_map, mask_in, mask_out)
    _check(certificate, delta, rtol, max_iterations)
    if seed is not None and not 0 <= seed < 2**SEED_BITS:
        raise ConfigError(f"seed={seed} must be an integer from 0 to 2^{SEED_BITS} - 1, as results hold them.")
    gradient = needs_gradient(masked)
    shared = start if isinstance(start, SharedStart) else None
    with torch.no_grad():
        solver = SOLVERS[_choose(simplify(problem), method, certificate, work_limit)]
        first = start if isinstance(start, Tensor) else None
        if shared is not None:
            first = shared.vector(problem)
            max_iterations = max_iterations if first is not None else max(max_iterations, shared.first_iterations)
        want = _want(vectors or shared is not None, gradient, solver)
        seed = _seed(solver, seed, generator)
        settings = Settings(delta, rtol, max_iterations, first, generator if seed is None else seed, want)
        with nullcontext() if solver.certificate == "estimate" else true_float32():
            found, exponent = solve_in_range(
                masked, problem, lambda part: _solve(part, solver, _for_part(settings, problem, part)), solver.given
            )
            result = dataclasses.replace(_rounded(found, exponent, problem.map.dtype), seed=seed)
        if shared is not None and result.right is not None:
            shared.update(problem, result.right)
    broken = result.upper.isnan() | result.lower.isnan() | (result.lower.isinf() & (not result.certified))
    if bool(broken.any()):
        raise NonFiniteError("a spectral norm", "check the map's values and the range of its dtype")
    return differentiable(masked, result, found, exponent) if gradient else result


def _check(certificate: str, delta: float, rtol: float, max_iterations: int) -> None:
    if certificate not in CERTIFICATES:
        raise UnknownMethodError(certificate, CERTIFICATES, "certificate")
    if not 0 < delta < 1:
        raise ConfigError(f"delta={delta} must lie strictly between 0 and 1.")
    if not rtol > 0:
        raise ConfigError(f"rtol={rtol} must be positive.")
    if max_iterations < 1:
        raise ConfigError(f"max_iterations={max_iterations} must be at least 1.")


def _choose(problem: Problem, method: str, certificate: str, limit: float) -> str:
    if method != "auto":
        if method not in SOLVERS:
            raise UnknownMethodError(method, ("auto", *SOLVERS), "norm method")
        kind = SOLVERS[method].certificate
        if certificate != kind and (certificate != "auto" or kind == "estimate"):
            raise ConfigError(f"method={method!r} gives certificate={kind!r}; ask for that, not {certificate!r}.")
        return method
    if certificate == "auto":
        small = min(problem.map.in_numel, problem.map.out_numel) <= SMALL_SIDE or few_rows(problem)
        cheap = min(work(problem).values(), default=float("inf")) <= limit
        certificate = "deterministic" if small or cheap else "probabilistic"
    return BEST[certificate]


def _solve(problem: Problem, solver: Solver, settings: Settings) -> NormResult:
    """Run a solver on the samples that have anything left; the norm of the others is 0, exactly.

    Where nothing is eliminated in any sample, as at the start of a training, one solve answers for all.
    """
    if _all_alike(problem):
        first = torch.zeros(1, dtype=torch.long, device=problem.map.device)
        start = None if settings.start is None else settings.start[:1]
        return _solve(problem.select(first), solver, dataclasses.replace(settings, start=start)).repeated(problem.size)
    core = _core(problem, solver)
    rows, columns = active_counts(core)  # of the core: a scale of 0 eliminates as a mask does
    alive = (rows * columns).nonzero().squeeze(1).to(problem.map.device)
    if len(alive) == problem.size:
        return _shaped(solver.run(core, settings), problem)
    if not len(alive):
        return _nothing(problem, solver, settings)
    start = settings.start
    if start is not None and len(start) == problem.size:
        settings = dataclasses.replace(settings, start=start[alive])
    return combined([_shaped(solver.run(core.select(alive), settings), problem)], [alive], problem.size)


def _all_alike(problem: Problem) -> bool:
    if problem.size == 1 or problem.map.batch_size is not None:
        return False
    masks = [mask for mask in (problem.mask_in, problem.mask_out) if mask is not None]
    # the last against the first, and only then all: mostly that settles it, at a small part of the reading
    return all(torch.equal(m[0], m[-1]) for m in masks) and all(bool((m == m[:1]).all()) for m in masks)


def _core(problem: Problem, solver: Solver) -> Problem:
    """The problem simplified; products of scales would be rounded, so a certificate forms them in float64."""
    core = simplify(problem)
    if core.map is problem.map or solver.certificate == "estimate":
        return core
    return simplify(problem.to(torch.float64))


def _shaped(result: NormResult, problem: Problem) -> NormResult:
    """Vectors in the shapes of the map that was given, rather than of its core."""
    shapes = problem.map.out_shape, problem.map.in_shape
    return result.with_vectors(lambda left, right: (left.reshape(-1, *shapes[0]), right.reshape(-1, *shapes[1])))


def _nothing(problem: Problem, solver: Solver, settings: Settings) -> NormResult:
    options = {"dtype": problem.map.dtype, "device": problem.map.device}
    zero = torch.zeros(problem.size, **options)
    vectors = (torch.zeros(problem.size, *shape, **options) for shape in (problem.map.out_shape, problem.map.in_shape))
    return NormResult(zero, zero, Certificate.of(solver.certificate, settings.delta), 0, *vectors)


def _rounded(result: NormResult, exponent: Tensor | None, dtype: torch.dtype) -> NormResult:
    """The result, times ``2^exponent``, in the map's precision; bounds are rounded outward."""
    left, right = (None if vector is None else vector.to(dtype) for vector in (result.left, result.right))
    if result.certified:
        lower, upper = (
            outward(value, exponent, dtype, up) for value, up in ((result.lower, False), (result.upper, True))
        )
        return dataclasses.replace(result, lower=lower, upper=upper, left=left, right=right)
    value = result.upper if exponent is None else times_power(result.upper.double(), exponent).to(dtype)
    return dataclasses.replace(result, lower=value, upper=value, left=left, right=right)


def _seed(solver: Solver, seed: int | None, generator: torch.Generator | None) -> int | None:
    """Of the run's start; ``None`` for an estimate from a generator."""
    if seed is not None or solver.certificate == "estimate":
        return seed
    if generator is not None:
        return seed_from(generator)
    return fresh_seed() if solver.certificate == "probabilistic" else 0


def _want(now: bool, gradient: bool, solver: Solver) -> Want:
    """A gradient of an estimate, which is for training, is taken; of a certificate mostly not."""
    if now or (gradient and solver.certificate == "estimate"):
        return Want.NOW
    return Want.LATER if gradient else Want.NOTHING


def _for_part(settings: Settings, problem: Problem, part: Problem) -> Settings:
    """Of a part of a problem, or the problem in other units, which has no start of its own."""
    return settings if part is problem else dataclasses.replace(settings, start=None)
