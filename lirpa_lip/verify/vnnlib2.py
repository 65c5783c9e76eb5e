"""VNN-LIB 2.0, parsed and type-checked by the package ``vnnlib``, in the same terms as 1.0."""

from __future__ import annotations

import json
import math
from typing import Any

from lirpa_lip.errors import DataError, MissingDependencyError
from lirpa_lip.verify.expressions import Comparison, Formula, Junction, Polynomial, Variable, all_of
from lirpa_lip.verify.rounding import exact

#: Numbers that a network takes or gives, far more than any that can be verified.
_LARGEST = 10**7
_SIGNS = {"LessEqual": "<=", "LessThan": "<", "GreaterEqual": ">=", "GreaterThan": ">", "Equal": "="}


def parse_vnnlib2(text: str, source: str) -> tuple[Formula, set[Variable]]:
    """The conjunction of a file's assertions, and what variables it declares.

    Raises:
        MissingDependencyError: the extra ``[onnx]`` is not installed.
        DataError: it is no VNN-LIB 2.0, or speaks of several networks, inputs, outputs, or hidden nodes.
    """
    try:
        import vnnlib
    except ImportError as error:
        raise MissingDependencyError(
            "VNN-LIB 2.0 files need the package vnnlib. Install it with:  pip install 'lirpa_lip[onnx]'"
        ) from error
    try:
        query = vnnlib.parse_query_string(text)
    except vnnlib.VNNLibException as error:
        raise DataError(f"{source}: {_first_error(str(error))}") from error
    if len(query.networks) != 1:
        raise DataError(f"{source} speaks of {len(query.networks)} networks; one can be verified at a time.")
    network = query.networks[0]
    for kind, found in (("inputs", network.inputs), ("outputs", network.outputs)):
        if len(found) != 1:
            raise DataError(f"{source} speaks of {len(found)} {kind}, which the network lacks: it has one.")
    if network.hidden:
        raise DataError(f"{source} speaks of hidden nodes, which is not supported; state it of inputs and outputs.")
    sizes = [math.prod(definition.shape) for definition in (network.inputs[0], network.outputs[0])]
    if max(sizes) > _LARGEST:
        raise DataError(f"{source} declares {max(sizes)} numbers; no network it could belong to has as many.")
    declared = {Variable(bool(kind), index) for kind, size in enumerate(sizes) for index in range(size)}
    return all_of(_formula(assertion.expr, source) for assertion in query.assertions), declared


def _first_error(message: str) -> str:
    try:
        first = json.loads(message)["errors"][0]
        return f"{first['message']} {first['offendingSymbol']!r} in line {first['line']}: {first['hint']}"
    except (ValueError, KeyError, IndexError, TypeError):
        return message


def _formula(node: Any, source: str) -> Formula:
    kind = type(node).__name__
    if kind in ("And", "Or"):
        return Junction(kind == "And", tuple(_formula(part, source) for part in node.args))
    if kind in _SIGNS:
        return Comparison.make(_polynomial(node.lhs, source), _SIGNS[kind], _polynomial(node.rhs, source))
    raise DataError(f"{source}: {node} is no constraint that can be verified: and, or, <=, >=, <, >, ==.")


def _polynomial(node: Any, source: str) -> Polynomial:
    kind = type(node).__name__
    if kind == "Var":
        flat = 0
        for index, size in zip(node.indices, node.shape, strict=True):
            flat = flat * size + index
        return Polynomial.of(Variable(node.kind.name == "Output", flat))
    if kind == "Negate":
        return _polynomial(node.expr, source).times(-1)
    if kind == "Plus":
        return Polynomial.total([_polynomial(part, source) for part in node.args])
    if kind == "Minus":
        rest = [_polynomial(part, source).times(-1) for part in node.rest]
        return Polynomial.total([_polynomial(node.head, source), *rest])
    if kind == "Multiply":
        return Polynomial.product([_polynomial(part, source) for part in node.args], source)
    if hasattr(node, "lexeme"):
        return Polynomial.constant_of(exact(node.lexeme))
    raise DataError(f"{source}: {node} is no term that can be read.")
