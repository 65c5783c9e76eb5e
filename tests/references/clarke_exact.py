"""Exact constants of tiny ReLU networks, two ways: by listing their linear regions, and as one mixed-integer programme.

References for tests and benchmarks, for chains of affine layers and ReLUs on a box; written on weight matrices alone,
so that they share nothing with the bounds they check. Both rely on HiGHS to its tolerances: they are *not*
certificates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from lirpa_lip.activations.piecewise_linear import PiecewiseLinear
from lirpa_lip.errors import ConfigError, UnsupportedOperatorError
from lirpa_lip.network.graph import NetworkGraph

#: Hidden neurons up to which listing regions is reasonable.
NEURONS = 40


@dataclass(frozen=True)
class Chain:
    """``W_L relu(… relu(W_1 x + b_1) …) + b_L``."""

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    def jacobian(self, patterns: Sequence[np.ndarray]) -> np.ndarray:
        """The Jacobian for given 0/1 slopes of every hidden layer."""
        product = self.weights[0]
        for weight, slopes in zip(self.weights[1:], patterns):
            product = weight @ (slopes[:, None] * product)
        return product


def chain_of(graph: NetworkGraph) -> Chain:
    """The matrices of a chain of affine nodes and ReLUs.

    Raises:
        UnsupportedOperatorError: the network is something else.
    """
    weights, biases = [], []
    matrix, offset = np.eye(graph[graph.input].shape.numel()), np.zeros(graph[graph.input].shape.numel())
    previous = graph.input
    for node in graph:
        if node.is_input:
            continue
        if node.parents != (previous,):
            raise UnsupportedOperatorError(node.name, node.operator, reason="the exact reference takes chains alone")
        if node.maps is not None:
            step = node.maps[0].dense().detach().double().cpu().numpy()
            matrix, offset = step @ matrix, step @ offset
            if node.bias is not None:
                offset = offset + node.bias.detach().double().expand(1, *node.shape).flatten().cpu().numpy()
        else:
            f = node.activation
            if not (isinstance(f, PiecewiseLinear) and f.knots == (0.0,) and f.slopes == (0.0, 1.0)):
                raise UnsupportedOperatorError(node.name, node.operator, reason="the exact reference takes ReLU alone")
            weights.append(matrix)
            biases.append(offset)
            matrix, offset = np.eye(node.shape.numel()), np.zeros(node.shape.numel())
        previous = node.name
    return Chain((*weights, matrix), (*biases, offset))


def matrix_norm(jacobian: np.ndarray, norm: float, row: int | None) -> float:
    """``‖J‖_p → p``, or a row's constant (the dual norm of the row)."""
    if row is None:
        return float(np.linalg.norm(jacobian, {math.inf: np.inf, 2: 2, 1: 1}[norm]))
    return float(np.linalg.norm(jacobian[row], {math.inf: 1, 2: 2, 1: np.inf}[norm]))


def linear_regions(chain: Chain, low: np.ndarray, high: np.ndarray, margin: float = 1e-7) -> Iterator[list[np.ndarray]]:
    """Patterns of every linear region that meets the box ``[low, high]`` in an interior point, neuron by neuron.

    Raises:
        ConfigError: too many neurons.
    """
    hidden = sum(len(b) for b in chain.biases[:-1])
    if hidden > NEURONS:
        raise ConfigError(f"{hidden} hidden neurons are too many to list regions of; at most {NEURONS}.")

    def fill(
        layer: int, done: list[np.ndarray], a: np.ndarray, b: np.ndarray, rows, offsets
    ) -> Iterator[list[np.ndarray]]:
        if layer == len(chain.weights) - 1:
            yield done
            return
        yield from neuron(layer, 0, np.zeros(len(a)), done, a, b, rows, offsets)

    def neuron(layer, i, slopes, done, a, b, rows, offsets) -> Iterator[list[np.ndarray]]:
        if i == len(a):
            kept = slopes[:, None] * a, slopes * b
            weight, bias = chain.weights[layer + 1], chain.biases[layer + 1]
            yield from fill(layer + 1, [*done, slopes], weight @ kept[0], weight @ kept[1] + bias, rows, offsets)
            return
        for slope, sign in ((1.0, 1.0), (0.0, -1.0)):
            row, offset = [*rows, sign * a[i]], [*offsets, sign * b[i]]
            if _has_interior(np.array(row), np.array(offset), low, high, margin):
                chosen = slopes.copy()
                chosen[i] = slope
                yield from neuron(layer, i + 1, chosen, done, a, b, row, offset)

    yield from fill(0, [], chain.weights[0], chain.biases[0], [], [])


def _has_interior(a: np.ndarray, b: np.ndarray, low: np.ndarray, high: np.ndarray, margin: float) -> bool:
    """Whether ``A x + b ≥ t`` has a solution in the box with t > margin."""
    # a neuron that does not depend on x is on one side everywhere; at zero itself its slope plays no part
    constant = np.abs(a).sum(1) == 0
    if (b[constant] < 0).any():
        return False
    a, b = a[~constant], b[~constant]
    if len(a) == 0:
        return True
    answer = linprog(
        np.r_[np.zeros(len(low)), -1.0],
        A_ub=np.c_[-a, np.abs(a).sum(1)],
        b_ub=b,
        bounds=[*zip(low, high), (None, 1.0)],
        method="highs",
    )
    return answer.status == 0 and -answer.fun > margin


def enumerate_constant(chain: Chain, low, high, norm: float = math.inf, row: int | None = None) -> tuple[float, int]:
    """The exact constant over the box and the number of linear regions."""
    best, count = 0.0, 0
    for pattern in linear_regions(chain, np.asarray(low), np.asarray(high)):
        best = max(best, matrix_norm(chain.jacobian(pattern), norm, row))
        count += 1
    return best, count


def milp_constant(chain: Chain, low, high, row: int, time_limit: float = 60.0) -> float:
    """``max ‖J_row‖₁`` over the box (its ℓ∞ constant) as a mixed-integer linear programme, as in LipMIP.

    Variables: x, pre-activations' positive parts y, slopes s in {0, 1}, cotangents g and h = s·g, and the signs of the
    Jacobian's entries; products are linearised with interval bounds (big-M). Source: Jordan and Dimakis, NeurIPS 2020.

    Raises:
        ConfigError: HiGHS does not prove an optimum in time.
    """
    program = _Program()
    n = len(low)
    x = program.variables(n, low, high)
    slopes, value, bounds = [], x, (np.asarray(low, float), np.asarray(high, float))
    for weight, bias in zip(chain.weights[:-1], chain.biases[:-1]):
        centre, width = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
        lower, upper = weight @ centre + bias - np.abs(weight) @ width, weight @ centre + bias + np.abs(weight) @ width
        z = program.variables(len(bias), lower, upper)
        s = program.variables(len(bias), (lower > 0).astype(float), (upper >= 0).astype(float), integer=True)
        y = program.variables(len(bias), np.maximum(lower, 0), np.maximum(upper, 0))
        for i in range(len(bias)):
            program.equal([(z[i], 1.0), *((value[j], -weight[i, j]) for j in range(len(value)))], bias[i])
            # y = s z, with z ≥ 0 where s = 1 and z ≤ 0 where s = 0
            program.at_most([(z[i], 1.0), (s[i], -max(upper[i], 0.0))], 0.0)
            program.at_most([(z[i], -1.0), (s[i], -min(lower[i], 0.0))], -min(lower[i], 0.0))
            program.product(y[i], s[i], z[i], lower[i], upper[i])
        slopes.append(s)
        value, bounds = y, (np.maximum(lower, 0), np.maximum(upper, 0))
    g = None
    constant = chain.weights[-1][row]
    g_low = g_high = constant
    for weight, s in zip(reversed(chain.weights[:-1]), reversed(slopes)):
        h_low, h_high = np.minimum(g_low, 0), np.maximum(g_high, 0)
        h = program.variables(len(s), h_low, h_high)
        for i in range(len(s)):
            if g is None:
                program.equal([(h[i], 1.0), (s[i], -constant[i])], 0.0)
            else:
                program.product(h[i], s[i], g[i], g_low[i], g_high[i])
        centre, width = weight.T @ (h_low + h_high) / 2, np.abs(weight.T) @ (h_high - h_low) / 2
        g_low, g_high = centre - width, centre + width
        g = program.variables(len(g_low), g_low, g_high)
        for i in range(len(g)):
            program.equal([(g[i], 1.0), *((h[j], -weight[j, i]) for j in range(len(h)))], 0.0)
    if g is None:
        return float(np.abs(constant).sum())
    size = np.maximum(np.abs(g_low), np.abs(g_high))
    t, sign = program.variables(n, np.zeros(n), size), program.variables(n, np.zeros(n), np.ones(n), integer=True)
    for i in range(n):
        program.at_most([(t[i], 1.0), (g[i], -1.0), (sign[i], 2 * size[i])], 2 * size[i])
        program.at_most([(t[i], 1.0), (g[i], 1.0), (sign[i], -2 * size[i])], 0.0)
    return program.maximize(t, time_limit)


class _Program:
    """Collects variables and constraints of a mixed-integer linear programme."""

    def __init__(self) -> None:
        self.low: list[float] = []
        self.high: list[float] = []
        self.integer: list[int] = []
        self.rows: list[tuple[list[tuple[int, float]], float, float]] = []

    def variables(self, count: int, low, high, integer: bool = False) -> range:
        first = len(self.low)
        self.low += list(np.broadcast_to(low, count))
        self.high += list(np.broadcast_to(high, count))
        self.integer += [int(integer)] * count
        return range(first, first + count)

    def at_most(self, terms: list[tuple[int, float]], bound: float) -> None:
        self.rows.append((terms, -np.inf, bound))

    def equal(self, terms: list[tuple[int, float]], value: float) -> None:
        self.rows.append((terms, value, value))

    def product(self, h: int, s: int, g: int, low: float, high: float) -> None:
        """``h = s·g`` for binary s and g in ``[low, high]``."""
        self.at_most([(h, 1.0), (s, -high)], 0.0)
        self.at_most([(h, -1.0), (s, low)], 0.0)
        self.at_most([(h, 1.0), (g, -1.0), (s, -low)], -low)
        self.at_most([(h, -1.0), (g, 1.0), (s, high)], high)

    def maximize(self, objective: range, time_limit: float) -> float:
        matrix = np.zeros((len(self.rows), len(self.low)))
        for k, (terms, _, _) in enumerate(self.rows):
            for index, factor in terms:
                matrix[k, index] += factor
        cost = np.zeros(len(self.low))
        cost[list(objective)] = -1.0
        answer = milp(
            cost,
            integrality=self.integer,
            bounds=Bounds(self.low, self.high),
            constraints=LinearConstraint(matrix, [r[1] for r in self.rows], [r[2] for r in self.rows]),
            options={"time_limit": time_limit, "mip_rel_gap": 1e-6},
        )
        if answer.status != 0:
            raise ConfigError(f"HiGHS found no proven optimum: {answer.message}; allow more than {time_limit} s.")
        return -float(answer.fun)
