"""The kinds of case. Each draws one case from a random source and raises `Violation`, or any exception, if it fails.

A refusal in the package's own words (`LirpaLipError`) is no failure; every other exception is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction

import mpmath
import torch
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm, masked_spectral_norm
from lirpa_lip.norms.linear_map import ComposedMap, Conv2dMap, DenseMap
from lirpa_lip.regions.ball_box import box_ball_support

from .layers import Call
from .models import RandomModel, random_model, random_shape
from .operators import OPERATORS
from .oracles import Violation, check_values, exact, quotients
from .products import PRODUCTS, smooth
from .regions import Ball, random_region

DTYPES = (torch.float32, torch.float32, torch.float64)
BOUND_METHODS = (
    "local-lip",
    "local-lip",
    "sdp-crown",
    "local-lip-crown",
    "ibp",
    "crown",
    "crown-ibp",
    "crown-optimized",
)
CONSTANT_METHODS = ("local-lip", "local-lip", "local-lip-crown", "clarke-jacobian", "recurjac", "fastlip", "naive")
OURS = ("local-lip", "sdp-crown", "local-lip-crown")


def random_config(rng: random.Random, region: Ball) -> LocalLipConfig:
    """Settings of every kind that still gives a bound."""
    return LocalLipConfig(
        bound=rng.choice(["auto", "auto", "product", "composed"]),
        certificate=rng.choice(["auto", "auto", "deterministic", "probabilistic"]),
        norm_tolerance=rng.choice([1e-2, 1e-3]),
        anchored=rng.random() < 0.8,
        local_ball=rng.random() < 0.8,
        tighten=rng.choice([0, 0, 1, -1]),
        optimize=rng.choice([0, 0, 0, 4]),
        precision=rng.choice(["auto", "auto", "auto", "float64"]),
        image_box=region.image_box,
    )


def random_rows(rng: random.Random, batch: int, outputs: int, dtype: torch.dtype) -> Tensor | None:
    """``C``: none, differences of two outputs, or anything."""
    kind = rng.random()
    if kind < 0.3:
        return None
    if kind < 0.6 and outputs > 1:
        eye = torch.eye(outputs, dtype=dtype)
        return (eye[:1] - eye[1:]).expand(batch, -1, -1).contiguous()
    return torch.randn(batch, rng.randint(1, 3), outputs, dtype=dtype)


def _wrapped(rng: random.Random, model: nn.Module, region: Ball, config: LocalLipConfig, **options) -> BoundedModule:
    example = (
        region.centre if rng.random() < 0.5 else torch.zeros_like(region.centre[:1]).expand(2, *region.centre.shape[1:])
    )
    return BoundedModule(model, example, bound_opts={"local_lip": config, **options})


def network(rng: random.Random, norm: float | None = None) -> str:
    """Any model, region, method and setting; one or two methods in turn on one wrapped model."""
    dtype = rng.choice(DTYPES)
    model, shape = random_model(rng)
    model = model.to(dtype)
    region = random_region(rng, shape, dtype, norm)
    return bounds_hold(rng, model, region)


def bounds_hold(rng: random.Random, model: nn.Module, region: Ball, methods=BOUND_METHODS) -> str:
    dtype = region.centre.dtype
    usable = [m for m in methods if region.norm == 2 or m not in OURS]
    bounded = _wrapped(rng, model, region, random_config(rng, region), optimize_bound_args={"iteration": 3})
    with torch.no_grad():
        outputs = model(region.centre).flatten(1).shape[1]
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    said = []
    for _ in range(rng.choice([1, 1, 2])):
        method = rng.choice(usable)
        # auto_LiRPA's own methods know nothing of the image box
        whole = region if method in OURS else Ball(region.centre, region.eps, region.norm, region.low, region.high)
        rows = random_rows(rng, len(region.centre), outputs, dtype)
        said.append(method)
        lower, upper = bounded.compute_bounds(x=whole.bounded, C=rows, method=method)
        full = torch.eye(outputs, dtype=dtype).expand(len(region.centre), -1, -1) if rows is None else rows
        lower, upper = (None if t is None else t.detach().flatten(1) for t in (lower, upper))
        check_values(model, whole, full, lower, upper, method, generator, method in OURS)
    return "+".join(said)


def _one_value_a_group(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    if isinstance(layer, nn.GroupNorm):
        return math.prod(shape) == layer.num_groups
    return isinstance(layer, nn.InstanceNorm1d | nn.InstanceNorm2d) and math.prod(shape[1:]) == 1


def product_model(rng: random.Random) -> tuple[RandomModel, tuple[int, ...]]:
    """Something, a layer in which values meet or a rarer activation, and something again."""
    shape = random_shape(rng)

    def drawn(middle: tuple[int, ...]) -> nn.Module:
        layer = (smooth if rng.random() < 0.3 else PRODUCTS[len(middle)])(rng, middle)
        while _one_value_a_group(layer, middle):  # there is nothing to normalise, and PyTorch refuses to
            layer = PRODUCTS[len(middle)](rng, middle)
        return layer

    return _around(rng, shape, drawn), shape


def _around(rng: random.Random, shape: tuple[int, ...], drawn: Callable[[tuple[int, ...]], nn.Module]) -> RandomModel:
    """A random layer, one that is drawn for the shape of its output, and something to end with."""
    first, _ = random_model(rng, shape, depth=1)
    with torch.no_grad():
        middle = tuple(first(torch.zeros(2, *shape)).shape[1:])
        layer = drawn(middle).eval()
        width = layer(torch.rand(2, *middle)).flatten(1).shape[1]
    last = [nn.Flatten(), nn.Linear(width, rng.randint(1, 3))] if rng.random() < 0.7 else [nn.Flatten()]
    return RandomModel([first, layer, *last], {}).eval()


def products(rng: random.Random) -> str:
    """Products, quotients, softmax, attention, normalisations and rarer activations, by every method."""
    dtype = rng.choice(DTYPES)
    model, shape = product_model(rng)
    model = model.to(dtype)
    if rng.random() < 0.3:
        return constants_hold(rng, model, shape, dtype)
    return bounds_hold(rng, model, random_region(rng, shape, dtype, rng.choice([2.0, None])))


def operator_model(rng: random.Random) -> tuple[RandomModel, tuple[int, ...]]:
    """Something, a layer in rarer words, and something again."""
    shape = random_shape(rng)
    if rng.random() < 0.5:
        shape = (rng.randint(2, 4), rng.randint(2, 4))  # a signal: what recurrence and attention take
    return _around(rng, shape, lambda middle: OPERATORS[len(middle)](rng, middle)), shape


def operators(rng: random.Random) -> str:
    """einsum, recurrence, attention modules, indexing, resampling, reductions, by every method."""
    dtype = rng.choice(DTYPES)
    model, shape = operator_model(rng)
    model = model.to(dtype)
    if rng.random() < 0.2:
        return constants_hold(rng, model, shape, dtype)
    return bounds_hold(rng, model, random_region(rng, shape, dtype, rng.choice([2.0, None])))


def constants(rng: random.Random) -> str:
    """Local Lipschitz constants against difference quotients, and lower bounds against upper ones."""
    dtype = rng.choice(DTYPES)
    model, shape = random_model(rng, depth=rng.randint(1, 4))
    return constants_hold(rng, model.to(dtype), shape, dtype)


def constants_hold(rng: random.Random, model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    method = rng.choice(CONSTANT_METHODS)
    ours = method in ("local-lip", "local-lip-crown")
    region = random_region(rng, shape, dtype, 2.0 if ours else rng.choice([2.0, math.inf]))
    norm = 2.0 if ours else rng.choice([2.0, math.inf, 1.0])
    bounded = _wrapped(rng, model, region, random_config(rng, region))
    with torch.no_grad():
        outputs = model(region.centre).flatten(1).shape[1]
    rows = random_rows(rng, len(region.centre), outputs, dtype)
    options = {} if ours else {"samples": 4, "steps": 2}
    if method == "clarke-jacobian" and rng.random() < 0.1:
        options["time_limit"] = 0.2
    result = bounded.local_lipschitz(x=region.bounded, C=rows, method=method, norm=norm, **options)
    full = torch.eye(outputs, dtype=dtype).expand(len(region.centre), -1, -1) if rows is None else rows
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    seen = quotients(exact(model), region, full, norm, rows is None, generator)
    upper, lower = result.upper.detach().double(), result.lower.detach().double()
    name = f"{method}, norm {norm}"
    if bool(torch.isnan(upper).any() | torch.isnan(lower).any()):
        raise Violation(f"{name}: NaN")
    if bool((seen > upper * (1 + 1e-9)).any()):
        raise Violation(f"{name}: a quotient of {seen.max():.6g} exceeds upper {upper.min():.6g}")
    if bool((lower > upper).any()):
        raise Violation(f"{name}: lower exceeds upper by {(lower - upper).max():.3g}")
    return method


def convolutions(rng: random.Random) -> str:
    """Square convolutions of every group count, dilation, stride and padding in a row, which CROWN runs in patches."""
    torch.manual_seed(rng.randrange(2**31))
    channels, side = rng.choice([2, 4]), rng.randint(4, 7)
    layers: list[nn.Module] = []
    value = torch.zeros(1, channels, side, side)
    for _ in range(rng.randint(2, 3)):
        kernel, dilation, stride = rng.choice([1, 2, 3]), rng.choice([1, 1, 2]), rng.choice([1, 1, 2])
        padding, c = rng.choice([0, 1, 2]), value.shape[1]
        if value.shape[2] + 2 * padding < (kernel - 1) * dilation + 1:
            break
        groups = rng.choice([g for g in (1, 2, c) if c % g == 0])
        out = groups * rng.choice([1, 2])
        layers.append(nn.Conv2d(c, out, kernel, stride, padding, dilation, groups))
        kinks: list[Callable[[], nn.Module]] = [nn.ReLU, nn.ReLU6, nn.Hardswish]
        kinks += [lambda: nn.LeakyReLU(0.25), lambda: Call(torch.abs)]
        layers.append(rng.choice(kinks)())
        value = nn.Sequential(*layers[-2:])(value)
    layers += [nn.Flatten(), nn.LazyLinear(3)]
    model = nn.Sequential(*layers).eval()
    dtype = rng.choice(DTYPES)
    model(torch.zeros(1, channels, side, side))
    model = model.to(dtype)
    region = random_region(rng, (channels, side, side), dtype)
    return bounds_hold(rng, model, region, ("crown", "crown", "local-lip-crown", "crown-optimized", "crown-ibp"))


def scales(rng: random.Random) -> str:
    """Knots from 1e-30 to 1e30, biases that cancel, masks of −1e9, weights of every scale."""
    torch.manual_seed(rng.randrange(2**31))
    n = rng.randint(1, 4)
    knot = rng.choice([-1, 1]) * 2.0 ** rng.randint(-100, 100)
    far = rng.choice([1e5, 1e7])
    forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("clamp above", lambda x: x.clamp(max=knot)),
        ("clamp below", lambda x: x.clamp(min=knot)),
        ("maximum", lambda x: torch.maximum(x, torch.full_like(x, knot))),
        ("masked max", lambda x: (x + torch.tensor([0.0] * (n - 1) + [-abs(knot)])[:n]).amax(1, keepdim=True)),
        ("cancelling", lambda x: (x + far) - far),
        ("third", lambda x: x / 3 - 1.0),
        ("clamped shift", lambda x: torch.relu(x.clamp(max=abs(knot)) - 1)),
    ]
    name, form = rng.choice(forms)
    first, last = nn.Linear(n, n), nn.Linear(1 if name == "masked max" else n, 2)
    if rng.random() < 0.3:
        first.weight.data *= 10.0 ** rng.randint(-12, 6)
    model = nn.Sequential(first, Call(form), *([nn.ReLU()] if rng.random() < 0.5 else []), last)
    if name == "cancelling" and rng.random() < 0.5:
        model = nn.Sequential(first, nn.Linear(n, 4), nn.ReLU(), nn.Linear(4, 2))
        model[1].bias.data += far
        model[3].bias.data -= (model[3].weight.data * far).sum(1)
    dtype = rng.choice(DTYPES)
    region = random_region(rng, (n,), dtype)
    return name + " " + bounds_hold(rng, model.to(dtype), region)


def exact_linear(rng: random.Random) -> str:
    """Linear networks in rational arithmetic: the bounds hold to the last bit, for ε = 0 and for balls."""
    torch.manual_seed(rng.randrange(2**31))
    dtype = rng.choice([torch.float32, torch.float64])
    n, scale = rng.randint(1, 4), 10.0 ** rng.choice([0, 0, 0, -8, 6])
    sizes = [n, *(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))]
    layers = [nn.Linear(a, b).to(dtype) for a, b in zip(sizes, sizes[1:])]
    for layer in layers:
        layer.weight.data *= scale
    model = nn.Sequential(*layers)
    eps = rng.choice([0.0, 0.0, 0.1, 0.7, 1.0])
    x = (torch.randn(1, n, dtype=torch.float64) * 10.0 ** rng.randint(-3, 3)).to(dtype)
    matrix = [[Fraction(int(i == j)) for j in range(n)] for i in range(n)]
    value = [Fraction(float(v)) for v in x[0]]
    for layer in layers:
        weight = [[Fraction(float(v)) for v in row] for row in layer.weight]
        bias = [Fraction(float(v)) for v in layer.bias]
        value = [sum(w * v for w, v in zip(row, value)) + b for row, b in zip(weight, bias)]
        matrix = [[sum(w * m[j] for w, m in zip(row, matrix)) for j in range(n)] for row in weight]
    squares = [sum(v * v for v in row) for row in matrix]
    bounded = BoundedModule(model, torch.zeros(2, n, dtype=dtype))
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)
    method = rng.choice(["local-lip", "sdp-crown"])
    lower, upper = bounded.compute_bounds(x=ball, method=method)
    for low, high, centre, square in zip(lower[0].tolist(), upper[0].tolist(), value, squares):
        reach = square * Fraction(eps) ** 2
        for gap, side in ((Fraction(high) - centre, "upper"), (centre - Fraction(low), "lower")):
            if gap < 0 or gap * gap < reach:
                raise Violation(
                    f"{method}: {side} crosses the exact value by {float(-gap):.3g} beside {float(reach):.3g}"
                )
    result = bounded.local_lipschitz(x=ball, C=torch.eye(sizes[-1], dtype=dtype).unsqueeze(0))
    for low, high, square in zip(result.lower[0].tolist(), result.upper[0].tolist(), squares):
        if Fraction(high) ** 2 < square or (eps > 0 and Fraction(low) ** 2 > square):
            raise Violation(f"constant: [{low}, {high}] does not hold the exact {float(square) ** 0.5}")
    return method


def norms(rng: random.Random) -> str:
    """Masked norms at every scale against singular values in 60 digits."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    dtype = rng.choice([torch.float32, torch.float64])
    most = 30 if dtype == torch.float32 else 250
    scale = 10.0 ** rng.choice([0, 0, rng.randint(-most, most)])
    rows, columns = rng.randint(1, 4), rng.randint(1, 4)
    entries = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * scale
    if rng.random() < 0.3:
        entries[:, 0] = entries[:, -1]
    matrix = entries.to(dtype)
    map_, dense = DenseMap(matrix), _exact_matrix(matrix)
    if rng.random() < 0.25:
        inner = torch.randn(columns, 3, generator=generator, dtype=torch.float64).to(dtype)
        map_, dense = ComposedMap([map_, DenseMap(inner)]), dense * _exact_matrix(inner)
    kind = rng.choice(["deterministic", "probabilistic", "auto"])
    masks: dict[str, Tensor] = {}
    if rng.random() < 0.5:
        mask = (torch.rand(1, rows, generator=generator) < 0.6).to(dtype)
        masks["mask_out"] = mask
        dense = mpmath.diag([mpmath.mpf(float(v)) for v in mask[0]]) * dense
    result = masked_spectral_norm(map_, certificate=kind, **masks)
    with mpmath.workdps(60):
        size = max(abs(v) for v in dense)
        true = size * max(mpmath.svd_r(dense / size, compute_uv=False)) if size else mpmath.mpf(0)
        low, high = mpmath.mpf(float(result.lower[0])), mpmath.mpf(float(result.upper[0]))
        if high < true or low > true:
            raise Violation(f"{kind}: [{low}, {high}] does not hold {mpmath.nstr(true, 20)}")
        if high > true * 1.2 and high > mpmath.mpf(torch.finfo(dtype).tiny):
            raise Violation(f"{kind}: {high} is far above {mpmath.nstr(true, 20)}")
    return kind


def _exact_matrix(matrix: Tensor) -> mpmath.matrix:
    return mpmath.matrix([[mpmath.mpf(float(v)) for v in row] for row in matrix])


def convolution_norms(rng: random.Random) -> str:
    """Norms of masked convolutions against float64 singular values."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    channels, side, groups = rng.choice([1, 2, 4]), rng.randint(2, 4), rng.choice([1, 1, 2])
    groups = groups if channels % groups == 0 else 1
    kernel, stride, padding = rng.randint(1, 2), rng.randint(1, 2), rng.randint(0, 1)
    dtype = rng.choice([torch.float32, torch.float64])
    weight = torch.randn(2 * groups, channels // groups, kernel, kernel, generator=generator, dtype=torch.float64)
    map_ = Conv2dMap(weight.to(dtype), (channels, side, side), stride, padding, 1, groups=groups)
    share = rng.choice([0.0, 0.3, 0.9, 1.0])
    mask = (torch.rand(2, *map_.in_shape, generator=generator) < share).to(dtype)
    result = masked_spectral_norm(map_, mask_in=mask, certificate=rng.choice(["deterministic", "probabilistic"]))
    dense = map_.to(torch.float64).dense() * mask.double().flatten(1).unsqueeze(1)
    true = torch.linalg.matrix_norm(dense, 2)
    if bool((result.upper.double() < true * (1 - 1e-12)).any() | (result.lower.double() > true * (1 + 1e-6)).any()):
        raise Violation(f"[{result.lower}, {result.upper}] does not hold {true}")
    return result.certificate


def box_and_ball(rng: random.Random) -> str:
    """The support of box ∩ ball against its exact maximum, by bisection on the multiplier in 50 digits."""
    n = rng.randint(1, 5)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    a = torch.randn(1, 1, n, generator=generator, dtype=torch.float64) * 10.0 ** rng.randint(-3, 3)
    low, high = (-torch.rand(1, n, generator=generator, dtype=torch.float64) for _ in range(2))
    high = -high
    low[:, 0], radius = rng.choice([0.0, float(low[0, 0])]), rng.choice([0.0, 1e-3, 0.3, 1.0, 10.0])
    found = float(box_ball_support(a, low, high, torch.tensor([radius], dtype=torch.float64)))
    true = _exact_support([float(v) for v in a.flatten()], low[0].tolist(), high[0].tolist(), radius)
    if found < true * (1 - 1e-12):
        raise Violation(f"{found!r} is below the maximum {true!r}")
    return f"n = {n}"


def _exact_support(a: list[float], low: list[float], high: list[float], radius: float) -> float:
    """A feasible value within 1e-15 of the maximum: ``e = clip(μ a)`` with ``‖e‖ = radius``, or the box's corner."""

    def at(scale: float) -> list[float]:
        return [min(max(scale * v, lo), hi) for v, lo, hi in zip(a, low, high)]

    def size(scale: float) -> float:
        return math.hypot(*at(scale))

    if size(1e12) <= radius:
        return math.fsum(v * e for v, e in zip(a, at(1e12)))
    left, right = 0.0, 1e12
    for _ in range(300):
        middle = (left * right) ** 0.5 if left > 1e-12 else right / 2
        left, right = (middle, right) if size(middle) <= radius else (left, middle)
    return math.fsum(v * e for v, e in zip(a, at(left)))


def tiny_exact(rng: random.Random) -> str:
    """ReLU networks of one input: their exact range and constant, kink by kink."""
    torch.manual_seed(rng.randrange(2**31))
    hidden, dtype = rng.randint(1, 5), torch.float64
    layers: list[nn.Module] = [
        nn.Linear(1, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 1),
    ]
    if rng.random() < 0.5:
        layers = [*layers[:2], nn.Linear(hidden, 1)]
    model = nn.Sequential(*layers).to(dtype)
    if rng.random() < 0.3:
        layers[0].bias.data.zero_()  # kinks at the centre
    x, eps = (
        torch.zeros(1, 1, dtype=dtype) if rng.random() < 0.3 else torch.randn(1, 1, dtype=dtype),
        rng.choice([0.1, 1.0]),
    )
    grid = _kinks(layers, float(x) - eps, float(x) + eps)
    with torch.no_grad():
        values = model(torch.tensor(grid, dtype=dtype).unsqueeze(1)).flatten()
    slopes = [abs(float(b - a)) / (t - s) for a, b, s, t in zip(values, values[1:], grid, grid[1:]) if t - s > 1e-9]
    bounded = BoundedModule(model, torch.zeros(2, 1, dtype=dtype))
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)
    method = rng.choice(["local-lip", "sdp-crown", "local-lip-crown"])
    lower, upper = bounded.compute_bounds(x=ball, method=method)
    if float(lower) > float(values.min()) + 1e-12 or float(upper) < float(values.max()) - 1e-12:
        raise Violation(f"{method}: [{float(lower)}, {float(upper)}] misses [{values.min()}, {values.max()}]")
    kind = rng.choice(["local-lip", "clarke-jacobian"])
    result = bounded.local_lipschitz(x=ball, method=kind)
    true = max(slopes, default=0.0)
    if float(result.upper) < true * (1 - 1e-6) or float(result.lower) > true * (1 + 1e-6) + 1e-12:
        raise Violation(f"{kind}: constant [{float(result.lower)}, {float(result.upper)}] misses {true}")
    return method


def _kinks(layers: list[nn.Module], low: float, high: float) -> list[float]:
    """Ascending points that hold every kink of a ReLU network of one input on [low, high]."""
    points = [low, high]
    depth = 1
    while depth < len(layers):
        part = nn.Sequential(*layers[:depth])
        with torch.no_grad():
            z = part(torch.tensor(points, dtype=torch.float64).unsqueeze(1))
        for a, b, s, t in zip(points[:-1], points[1:], z[:-1], z[1:]):
            for u, v in zip(s.tolist(), t.tolist()):
                if u * v < 0:
                    points.append(a + (b - a) * u / (u - v))
        points = sorted(set(points))
        depth += 2
    return points


def live(rng: random.Random) -> str:
    """Bounds after the wrapped model has changed: weights, buffers, statistics are those of now."""
    model, shape = random_model(rng)
    region = random_region(rng, shape, torch.float32)
    bounded = _wrapped(rng, model, region, random_config(rng, region))
    torch.manual_seed(rng.randrange(2**31))
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            # a mask stays 0 or 1: else the float32 network rounds weight × mask, and the oracle does not
            if tensor.is_floating_point() and not name.endswith("mask") and rng.random() < 0.6:
                tensor.mul_(1 + 0.5 * torch.rand_like(tensor))
    method = rng.choice(["local-lip", "sdp-crown", "ibp", "crown"] if region.norm == 2 else ["ibp", "crown"])
    whole = region if method in OURS else Ball(region.centre, region.eps, region.norm, region.low, region.high)
    lower, upper = bounded.compute_bounds(x=whole.bounded, method=method)
    outputs = lower.flatten(1).shape[1]
    rows = torch.eye(outputs).expand(len(region.centre), -1, -1)
    generator = torch.Generator().manual_seed(0)
    lower, upper = lower.detach().flatten(1), upper.detach().flatten(1)
    check_values(model, whole, rows, lower, upper, method, generator, method in OURS)
    return method


#: Every kind with its share of the cases.
KINDS: dict[str, tuple[Callable[[random.Random], str], int]] = {
    "network": (network, 34),
    "constants": (constants, 14),
    "convolutions": (convolutions, 10),
    "scales": (scales, 10),
    "exact linear": (exact_linear, 8),
    "norms": (norms, 8),
    "convolution norms": (convolution_norms, 3),
    "box and ball": (box_and_ball, 3),
    "tiny exact": (tiny_exact, 6),
    "live": (live, 4),
    "products": (products, 16),
    "operators": (operators, 20),
}
