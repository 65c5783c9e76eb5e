"""VNN-LIB 1.0: constants ``X_i`` and ``Y_j``, and assertions about them, as nested lists of words."""

from __future__ import annotations

import re

from lirpa_lip.errors import DataError
from lirpa_lip.verify.expressions import Comparison, Formula, Junction, Polynomial, Variable, all_of
from lirpa_lip.verify.rounding import exact

_TOKEN = re.compile(r"\(|\)|[^\s()]+")
_NAME = re.compile(r"([XY])_(\d+)$", re.ASCII)
_DEEPEST = 200
_COMPARISONS = {"<=", ">=", "<", ">", "="}

Tree = "str | list[Tree]"


def parse_vnnlib1(text: str, source: str) -> tuple[Formula, set[Variable]]:
    """The conjunction of a file's assertions, and what variables it declares.

    Raises:
        DataError: the text is not balanced, or holds what is none of VNN-LIB 1.0.
    """
    declared: set[Variable] = set()
    asserted: list[Formula] = []
    for tree in _trees(text, source):
        if not isinstance(tree, list) or not tree:
            raise DataError(f"{source}: {tree!r} stands outside of any command; it is no VNN-LIB.")
        if tree[0] == "declare-const" and len(tree) == 3:
            declared.add(_declared(tree, source))
        elif tree[0] == "assert" and len(tree) == 2:
            asserted.append(_formula(tree[1], declared, source))
        else:
            raise DataError(f"{source}: {_shown(tree)} is no command of VNN-LIB 1.0 (declare-const, assert).")
    return all_of(asserted), declared


def _trees(text: str, source: str) -> list:
    lines = (line.split(";", 1)[0] for line in text.splitlines())
    stack: list[list] = [[]]
    for token in _TOKEN.findall("\n".join(lines)):
        if token == "(":
            if len(stack) > _DEEPEST:
                raise DataError(f"{source}: parentheses are nested more than {_DEEPEST} deep.")
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise DataError(f"{source}: a closing parenthesis too many.")
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    if len(stack) > 1:
        raise DataError(f"{source}: {len(stack) - 1} parentheses are never closed; the file is cut short?")
    return stack[0]


def _declared(tree: list, source: str) -> Variable:
    if tree[2] != "Real":
        raise DataError(f"{source}: {tree[1]} is declared {_shown(tree[2])}; VNN-LIB 1.0 has Real alone.")
    return _variable(tree[1], source)


def _variable(name: object, source: str) -> Variable:
    found = _NAME.match(name) if isinstance(name, str) else None
    if found is None:
        raise DataError(f"{source}: {_shown(name)} is no input X_i and no output Y_j.")
    return Variable(found[1] == "Y", int(found[2]))


def _formula(tree: object, declared: set[Variable], source: str) -> Formula:
    if not isinstance(tree, list) or not tree or not isinstance(tree[0], str):
        raise DataError(f"{source}: {_shown(tree)} is no constraint.")
    head, rest = tree[0], tree[1:]
    if head in ("and", "or"):
        return Junction(head == "and", tuple(_formula(part, declared, source) for part in rest))
    if head in _COMPARISONS and len(rest) == 2:
        left, right = (_polynomial(part, declared, source) for part in rest)
        return Comparison.make(left, head, right)
    raise DataError(
        f"{source}: {_shown(tree)} is no constraint that can be read: and, or, <=, >=, <, >, = of two terms."
    )


def _polynomial(tree: object, declared: set[Variable], source: str) -> Polynomial:
    if isinstance(tree, str):
        if _NAME.match(tree):
            variable = _variable(tree, source)
            if variable not in declared:
                raise DataError(f"{source}: {tree} is used and never declared.")
            return Polynomial.of(variable)
        if not re.match(r"[-+.\d]", tree):
            raise DataError(f"{source}: {tree!r} is an unknown variable; inputs are X_i, outputs Y_j.")
        return Polynomial.constant_of(exact(tree))
    if not isinstance(tree, list) or len(tree) < 2 or not isinstance(tree[0], str):
        raise DataError(f"{source}: {_shown(tree)} is no term.")
    parts = [_polynomial(part, declared, source) for part in tree[1:]]
    if tree[0] == "+":
        return Polynomial.total(parts)
    if tree[0] == "-":
        rest = [part.times(-1) for part in parts[1:]]
        return Polynomial.total([parts[0], *rest]) if rest else parts[0].times(-1)
    if tree[0] == "*":
        return Polynomial.product(parts, source)
    raise DataError(f"{source}: {tree[0]!r} is no operation that can be read: +, - and *.")


def _shown(tree: object) -> str:
    text = str(tree).replace("'", "").replace(",", "").replace("[", "(").replace("]", ")")
    return text if len(text) < 80 else text[:77] + "…"
