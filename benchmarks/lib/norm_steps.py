"""What one step costs: of the recurrence against its roofline, of an estimate in training against a plain step.

On a GPU also each kernel against the measured bandwidth or matrix product, and against ``torch.compile`` of the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.norm_problems import SHAPES, Layer, active_layers, layers, network
from lirpa_lip.losses.warm_norm import WarmStarts
from lirpa_lip.norms import SharedStart, masked_spectral_norm
from lirpa_lip.norms.kernels import reference
from lirpa_lip.norms.kernels.recording import cuda_graph, use_recorder
from lirpa_lip.norms.lanczos import Recurrence, random_start
from lirpa_lip.norms.problem import prepare

Row = dict[str, object]
#: Seconds of a call, the last result: ``seconds_of(function, repeats)``.
Clock = Callable[..., tuple[float, object]]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: Calls that are not counted, and calls that are.
WARM_UP, CALLS = 10, 15


def on_device(layer: Layer) -> Layer:
    mask_in = None if layer.mask_in is None else layer.mask_in.to(DEVICE)
    return Layer(layer.map.to(device=DEVICE), mask_in, layer.mask_out.to(DEVICE))


def timed(seconds_of: Clock, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, taken in turn, so that a busy machine slows all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UP + CALLS):
        for name, call in calls.items():
            took = seconds_of(call)[0]
            if turn >= WARM_UP:
                times[name].append(took)
    return {name: median(taken) for name, taken in times.items()}


def step_rows(name: str, samples: int, seconds_of: Clock) -> Iterator[Row]:
    """The share of a step that its two products take, which no recurrence can do without; layer by layer."""
    totals = {"step": 0.0, "products": 0.0}
    for i, layer in enumerate(layers(network(name, "random"), SHAPES[name][0], samples, 0.5)):
        _, problem = prepare(*on_device(layer).arguments)
        state = Recurrence(problem.with_stencil(), random_start(problem, None), False)
        state.advance_to(2)
        vector = problem.shaped(state.v, problem.map.in_shape if problem.on_input else problem.map.out_shape)
        times = timed(seconds_of, {"step": state.advance, "products": lambda p=problem, v=vector: _pair(p, v)})
        totals = {key: total + times[key] for key, total in totals.items()}
        yield {
            "method": "lanczos",
            "setting": f"layer {i + 1}: products alone / step",
            "seconds": times["step"],
            "value": times["products"] / times["step"],
        }
    yield {
        "method": "lanczos",
        "setting": "all layers: products alone / step",
        "seconds": totals["step"],
        "value": totals["products"] / totals["step"],
        "note": "the aim is 0.6 or more",
    }


@torch.no_grad()
def _pair(problem, vector: Tensor) -> Tensor:
    if problem.on_input:
        return problem.map.adjoint(problem.map.forward(vector))
    return problem.map.forward(problem.map.adjoint(vector))


def training_rows(name: str, seconds_of: Clock) -> Iterator[Row]:
    """One estimate of all layers' norms with its gradient, over a plain forward and backward pass on the same batch."""
    batch = 256 if DEVICE.type == "cuda" else 32
    model = network(name, "random").to(DEVICE)
    x = torch.rand(batch, *SHAPES[name][0], device=DEVICE)
    y = torch.randint(SHAPES[name][1], (batch,), device=DEVICE)
    problem = [on_device(layer) for layer in active_layers(model, x)]
    weights = [module.weight for module in model if isinstance(module, nn.Conv2d | nn.Linear)]
    truth = [masked_spectral_norm(*layer.arguments, certificate="estimate", rtol=1e-6).upper for layer in problem]

    def plain() -> None:
        F.cross_entropy(model(x), y).backward()

    def live(layer: Layer, weight: Tensor) -> Layer:
        return Layer(layer.map.rebuild(lambda _: weight, lambda t: t), layer.mask_in, layer.mask_out)

    estimates: dict[str, Callable[[], list[Tensor]]] = {}
    for steps in (1, 2):
        kept = WarmStarts()
        rings = [SharedStart() for _ in problem]

        def warm(kept: WarmStarts = kept, steps: int = steps) -> list[Tensor]:
            pairs = zip(problem, weights, strict=False)
            maps = [live(layer, weight) for layer, weight in pairs]
            return [kept.norm(i, m.map, m.mask_in, m.mask_out, steps) for i, m in enumerate(maps)]

        def shared(rings: list[SharedStart] = rings, steps: int = steps) -> list[Tensor]:
            options = {"certificate": "estimate", "max_iterations": steps}
            pairs = zip(problem, weights, rings, strict=False)
            found = [masked_spectral_norm(*live(one, w).arguments, start=ring, **options) for one, w, ring in pairs]
            return [result.upper for result in found]

        estimates[f"one vector a layer, {steps} pairs"] = warm
        estimates[f"ring of vectors, {steps} pairs"] = shared

    def with_gradient(estimate: Callable[[], list[Tensor]]) -> None:
        sum(norm.log().sum() for norm in estimate()).backward()

    calls = {label: lambda e=e: with_gradient(e) for label, e in estimates.items()}
    times = timed(seconds_of, {"plain": plain, **calls})
    for label, estimate in estimates.items():
        errors = [(found / exact - 1).abs() for found, exact in zip(estimate(), truth, strict=True)]
        yield {
            "method": label,
            "samples": batch,
            "setting": "estimate with gradient / plain forward and backward",
            "seconds": times[label],
            "value": times[label] / times["plain"],
            "mean_error": torch.stack([e.mean() for e in errors]).mean().item(),
            "note": f"plain {times['plain']:.4g} s; mean error over layers, after the same batch many times",
        }


def kernel_rows(seconds_of: Clock) -> Iterator[Row]:
    """Kernels against rooflines and against torch.compile, and recorded against launched steps; CUDA only."""
    if DEVICE.type != "cuda":
        yield {"method": "kernels", "note": "left out: no CUDA device"}
        return
    yield from _recurrence_rows(seconds_of)
    yield from _product_rows(seconds_of)
    yield from _recorded_rows(seconds_of)


def _recurrence_rows(seconds_of: Clock) -> Iterator[Row]:
    from lirpa_lip.norms.kernels import triton

    compiled = torch.compile(reference.lanczos_step)
    for size, n in ((64, 6272), (256, 6272), (256, 32768)):
        z, mask, v, v_prev = (torch.randn(size, n, device=DEVICE) for _ in range(4))
        scale, beta = torch.rand(2, size, device=DEVICE)
        call = (z, (mask > 0).float(), scale, v, v_prev, beta)
        steps = {
            "copy": lambda v=v, z=z: v.clone().copy_(z),
            "triton": lambda c=call: triton.lanczos_step(*c),
            "compile": lambda c=call: compiled(*c),
            "eager": lambda c=call: reference.lanczos_step(*c),
        }
        times = timed(seconds_of, {name: _many(step) for name, step in steps.items()})
        traffic, bandwidth = 5 * z.numel() * 4, 4 * z.numel() * 4 / times["copy"]
        where = {"method": "lanczos_step", "samples": size, "seconds": times["triton"] / REPEATED}
        yield {
            **where,
            "setting": f"n = {n}: share of the copy bandwidth",
            "value": traffic / times["triton"] / bandwidth,
        }
        for rival in ("compile", "eager"):
            yield {**where, "setting": f"n = {n}: {rival} / triton", "value": times[rival] / times["triton"]}


def _product_rows(seconds_of: Clock) -> Iterator[Row]:
    from lirpa_lip.norms.kernels import triton

    compiled = torch.compile(reference.masked_matmul)
    weight = torch.randn(512, 3136, device=DEVICE)
    for size in (64, 256):
        for eliminated in (0.0, 0.9, 0.99):
            x = torch.randn(size, 3136, device=DEVICE)
            mask_in, mask_out = ((torch.rand(size, n, device=DEVICE) >= eliminated).float() for n in (3136, 512))
            call = (x, weight, mask_in, mask_out)
            products = {
                "matmul": lambda x=x: x @ weight.mT,
                "triton": lambda c=call: triton.masked_matmul(*c),
                "compile": lambda c=call: compiled(*c),
            }
            times = timed(seconds_of, {name: _many(product) for name, product in products.items()})
            where = {"method": "masked_matmul", "samples": size, "eliminated": eliminated}
            for rival, said in (
                ("matmul", "the library's product without masks / triton"),
                ("compile", "compile / triton"),
            ):
                yield {
                    **where,
                    "setting": f"512 x 3136: {said}",
                    "seconds": times["triton"] / REPEATED,
                    "value": times[rival] / times["triton"],
                }


def _recorded_rows(seconds_of: Clock) -> Iterator[Row]:
    for name, samples in (("4c3f", 64), ("6c2f", 256)):
        problem = [on_device(layer) for layer in layers(network(name, "random"), SHAPES[name][0], samples, 0.5)]

        def solve(problem: list[Layer] = problem) -> None:
            for layer in problem:
                masked_spectral_norm(*layer.arguments, certificate="estimate", rtol=1e-3)

        def recorded(solve: Callable[[], None] = solve) -> None:
            with use_recorder(cuda_graph):
                solve()

        times = timed(seconds_of, {"launched": solve, "recorded": recorded})
        yield {
            "method": "cuda graph",
            "network": name,
            "samples": samples,
            "eliminated": 0.5,
            "setting": "all layers to rtol 1e-3: launched / recorded",
            "seconds": times["recorded"],
            "value": times["launched"] / times["recorded"],
        }


REPEATED = 50


def _many(call: Callable[[], object]) -> Callable[[], None]:
    """Often enough that the clock is not what is measured."""

    def run() -> None:
        for _ in range(REPEATED):
            call()

    return run
