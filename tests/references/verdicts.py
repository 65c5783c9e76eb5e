"""Small networks and properties whose truth a mixed integer programme (HiGHS) decides.

``python tests/references/verdicts.py 500`` compares the verifier with it on 500 of them (``500 100``: from the
100th on); every third has convolutions.
"""

from __future__ import annotations

import copy
import itertools
import sys
from fractions import Fraction

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from torch import nn

from lirpa_lip.verify.cascade import decide_property
from lirpa_lip.verify.input_region import InputRegion, Span
from lirpa_lip.verify.network import network_of
from lirpa_lip.verify.properties import Case, OutputRow, Property
from lirpa_lip.verify.settings import VerifySettings

#: Slack below which the programme's own tolerances leave the truth open.
TOLERANCE = 1e-5
#: Most of which all choices are tried.
_SWITCHES = 12


def random_network(rng: np.random.RandomState) -> nn.Sequential:
    sizes = [rng.randint(1, 4), *rng.randint(2, 6, size=rng.randint(1, 3)), rng.randint(1, 4)]
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:]):
        layers += [nn.Linear(int(before), int(after)), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.randn(*parameter.shape)))
    return model.eval()


def random_convolutions(rng: np.random.RandomState) -> nn.Sequential:
    """One or two convolutions and one or two dense layers on images of 3 × 3 or 4 × 4."""
    side, channels = rng.randint(3, 5), rng.randint(1, 3)
    layers: list[nn.Module] = [
        nn.Conv2d(1, int(channels), 2, stride=int(rng.randint(1, 3)), padding=int(rng.randint(2))),
        nn.ReLU(),
    ]
    if rng.randint(2):
        left = nn.Sequential(*layers)(torch.zeros(1, 1, side, side)).shape[-1]
        layers += [nn.Conv2d(int(channels), 1, 2, padding=max(int(rng.randint(2)), int(left < 2))), nn.ReLU()]
    layers.append(nn.Flatten())
    width = nn.Sequential(*layers)(torch.zeros(1, 1, side, side)).numel()
    if rng.randint(2):
        layers += [nn.Linear(width, 3), nn.ReLU()]
        width = 3
    model = nn.Sequential(*layers, nn.Linear(width, int(rng.randint(1, 4))))
    model.shape = (1, int(side), int(side))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.randn(*parameter.shape)) / max(1, parameter[0].numel() / 4) ** 0.5)
    return model.eval()


def input_shape(model: nn.Sequential) -> tuple[int, ...]:
    return model.shape if isinstance(model[0], nn.Conv2d) else (model[0].in_features,)


def affine_layers(model: nn.Sequential) -> list[tuple[np.ndarray, np.ndarray]]:
    """Matrix and offset of every layer but the activations, by what they do to unit vectors."""
    found, shape = [], input_shape(model)
    for layer in model:
        if isinstance(layer, (nn.ReLU, nn.Flatten)):
            shape = tuple(layer(torch.zeros(1, *shape)).shape[1:])
            continue
        with torch.no_grad():
            wide = copy.deepcopy(layer).double()
            size = int(np.prod(shape))
            at_zero = wide(torch.zeros(1, *shape, dtype=torch.float64))
            columns = wide(torch.eye(size, dtype=torch.float64).reshape(size, *shape)) - at_zero
            found.append((columns.flatten(1).T.numpy(), at_zero.flatten().numpy()))
            shape = tuple(at_zero.shape[1:])
    return found


def random_property(rng: np.random.RandomState, model: nn.Sequential) -> Property:
    """One to three cases of one or two rows, near the outputs on a box so that either verdict is likely."""
    inputs, outputs = int(np.prod(input_shape(model))), model[-1].out_features
    centre, width = np.round(rng.randn(inputs), 2), np.round(rng.uniform(0, 1, inputs) * rng.choice([0.1, 1.0]), 2)
    spans = [Span(Fraction(str(c - w)), Fraction(str(c + w))) for c, w in zip(centre, width)]
    region = InputRegion.from_ranges(spans, input_shape(model), torch.float32)
    seen = model(region.sample(200, torch.Generator().manual_seed(0))).detach().numpy()
    cases = []
    for _ in range(rng.randint(1, 4)):
        rows = []
        for _ in range(rng.randint(1, 3)):
            c = rng.randint(-2, 3, size=outputs)
            c[rng.randint(outputs)] = rng.choice([-1, 1])
            reached = seen @ c
            bound = reached.min() - rng.uniform(-0.1, 0.4) * (np.ptp(reached) + 0.1)
            kept = tuple((i, Fraction(int(v))) for i, v in enumerate(c) if v)
            rows.append(OutputRow(kept, Fraction(f"{bound:.3f}")))
        cases.append(Case(region, tuple(rows)))
    return Property(tuple(cases))


def slack(model: nn.Sequential, case: Case) -> float:
    """The largest t such that some x of the region keeps all rows by t: positive means that the case is violated."""
    layers = affine_layers(model)
    low, high = (t.flatten().numpy() for t in (case.region.low, case.region.high))
    lower, upper, integral = list(low), list(high), [0] * len(low)
    rows, least, most = [], [], []
    here, box = list(range(len(low))), (low, high)

    def add(entries: dict[int, float], a: float, b: float) -> None:
        rows.append(entries)
        least.append(a)
        most.append(b)

    for depth, (w, b) in enumerate(layers):
        positive, negative = w.clip(min=0), w.clip(max=0)
        z_low, z_high = (
            positive @ box[0] + negative @ box[1] + b - 1e-6,
            positive @ box[1] + negative @ box[0] + b + 1e-6,
        )
        z = list(range(len(lower), len(lower) + len(b)))
        lower += list(z_low)
        upper += list(z_high)
        integral += [0] * len(b)
        for i, place in enumerate(z):
            add({place: 1.0, **{j: -w[i, k] for k, j in enumerate(here)}}, b[i], b[i])
        if depth == len(layers) - 1:
            here = z
            break
        a = list(range(len(lower), len(lower) + len(b)))
        lower += [0.0] * len(b)
        upper += list(np.maximum(z_high, 0))
        integral += [0] * len(b)
        for i in range(len(b)):
            if z_low[i] >= 0 or z_high[i] <= 0:
                add({a[i]: 1.0, z[i]: -float(z_low[i] >= 0)}, 0, 0)
                continue
            switch = len(lower)
            lower.append(0)
            upper.append(1)
            integral.append(1)
            add({a[i]: 1.0, z[i]: -1.0}, 0, np.inf)
            add({a[i]: 1.0, z[i]: -1.0, switch: -z_low[i]}, -np.inf, -z_low[i])
            add({a[i]: 1.0, switch: -z_high[i]}, -np.inf, 0)
        here, box = a, (np.zeros(len(b)), np.maximum(z_high, 0))
    t = len(lower)
    lower.append(-100.0)
    upper.append(100.0)
    integral.append(0)
    for row in case.rows:
        add({**{here[i]: float(c) for i, c in row.coefficients}, t: 1.0}, -np.inf, float(row.bound))
    matrix = np.zeros((len(rows), t + 1))
    for number, entries in enumerate(rows):
        for place, value in entries.items():
            matrix[number, place] += value
    objective = np.zeros(t + 1)
    objective[t] = -1
    found = milp(
        objective,
        constraints=LinearConstraint(matrix, least, most),
        bounds=Bounds(lower, upper),
        integrality=integral,
        options={"mip_rel_gap": 1e-9},
    )
    if found.status == 0:
        return -found.fun
    return _enumerated(objective, (matrix, np.array(least), np.array(most)), np.array([lower, upper]).T, integral)


def _enumerated(objective: np.ndarray, rows: tuple, ends: np.ndarray, integral: list[int]) -> float:
    """By one linear programme for each choice of the switches, where HiGHS gives up on all at once; NaN of many."""
    matrix, least, most = rows
    below, above = np.isfinite(most), np.isfinite(least)
    a, b = np.vstack([matrix[below], -matrix[above]]), np.concatenate([most[below], -least[above]])
    best = -np.inf
    switches = np.flatnonzero(integral)
    if len(switches) > _SWITCHES:
        return np.nan
    for choice in itertools.product((0.0, 1.0), repeat=len(switches)):
        fixed = ends.copy()
        fixed[switches] = np.array(choice)[:, None]
        found = linprog(objective, A_ub=a, b_ub=b, bounds=fixed, method="highs")
        if found.status == 0:
            best = max(best, -found.fun)
        else:
            assert found.status == 2, found.message  # no input has these signs
    return best


def compare(seed: int, settings: VerifySettings, convolutions: bool = False) -> tuple[str, float]:
    """The verifier's status and the exact slack of one random property: see `is_wrong`."""
    rng = np.random.RandomState(seed)
    model = random_convolutions(rng) if convolutions else random_network(rng)
    claim = random_property(rng, model)
    network = network_of(model, input_shape(model))
    verdict = decide_property(network, claim, settings, seed)
    return verdict.status, float(np.max([slack(model, case) for case in claim.cases]))


def is_wrong(status: str, exact: float) -> bool:
    return (status == "certified" and exact > TOLERANCE) or (status == "refuted" and exact < -TOLERANCE)


if __name__ == "__main__":
    counts: dict[str, int] = {}
    for number in range(int(sys.argv[2]) if len(sys.argv) > 2 else 0, int(sys.argv[1])):
        status, exact = compare(number, VerifySettings(time_limit=10), convolutions=number % 3 == 2)
        truth = "violated" if exact > TOLERANCE else "holds" if exact < -TOLERANCE else "on the edge"
        truth = "unknown" if np.isnan(exact) else truth
        key = f"{status}, {truth}" + (" WRONG" if is_wrong(status, exact) else "")
        counts[key] = counts.get(key, 0) + 1
        if number % 50 == 49 or is_wrong(status, exact):
            print(number, counts, flush=True)
    print(counts)
