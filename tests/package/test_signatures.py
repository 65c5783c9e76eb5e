"""Every parameter has a type; what is public takes at most five positional arguments and returns no long bare tuple."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "lirpa_lip"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_POSITIONAL, LONGEST_TUPLE = 5, 2
#: One arithmetic step each, with a kernel's arguments in a kernel's order, many times a solve.
KERNELS = "norms/kernels/"
#: Called by auto_LiRPA, which takes what its own operators return.
OVERRIDES = ("bound_backward",)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, inside: str = "", private: bool = False) -> Iterator[tuple[str, Function, bool, bool]]:
    """``(name, function, whether it is a method, whether it is public)`` of all functions, also inside others."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f"{inside}{node.name}.", private or node.name.startswith("_"))
        elif isinstance(node, Function):
            name = f"{inside}{node.name}"
            hidden = private or (node.name.startswith("_") and not node.name.startswith("__"))
            static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
            yield name, node, isinstance(tree, ast.ClassDef) and not static, not hidden
            yield from functions(node, f"{name}.", True)
        else:
            yield from functions(node, inside, private)


def untyped(function: Function, method: bool) -> list[str]:
    """Parameters without a type, but for ``self`` and ``cls``, and for those of Triton, which means others by them."""
    if any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list):
        return []
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args][1 if method else 0 :]
    rest = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return [a.arg for a in (*positional, *arguments.kwonlyargs, *rest) if a.annotation is None]


def positional_count(function: Function, method: bool) -> int:
    return len(function.args.posonlyargs) + len(function.args.args) - (1 if method else 0)


def long_tuples(annotation: ast.expr | None) -> bool:
    """Whether a returned type is, or may be, a bare tuple of more than two: ``tuple[A, B, C]``, also behind ``|``."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.BinOp):
        return long_tuples(annotation.left) or long_tuples(annotation.right)
    if not (isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple)):
        return False
    if getattr(annotation.value, "id", getattr(annotation.value, "attr", "")) != "tuple":
        return False
    return len(annotation.slice.elts) > LONGEST_TUPLE


def returned_tuples(function: Function) -> bool:
    """Whether some ``return`` writes out a tuple of more than two."""
    inner = {n for f in ast.walk(function) if isinstance(f, (*_FUNCTIONS, ast.Lambda)) and f is not function
             for n in ast.walk(f)}  # fmt: skip
    returns = (n for n in ast.walk(function) if isinstance(n, ast.Return) and n not in inner)
    return any(isinstance(r.value, ast.Tuple) and len(r.value.elts) > LONGEST_TUPLE for r in returns)


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def problems(source: str) -> list[str]:
    found = []
    for name, function, method, public in functions(ast.parse(source)):
        found += [f"{name}: {argument} has no type" for argument in untyped(function, method)]
        public = public and function.name not in OVERRIDES
        if public and positional_count(function, method) > MOST_POSITIONAL:
            found.append(f"{name}: {positional_count(function, method)} positional arguments")
        if public and (long_tuples(function.returns) or returned_tuples(function)):
            found.append(f"{name}: a bare tuple of more than two")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_signatures(path):
    place = path.relative_to(PACKAGE).as_posix()
    found = problems(path.read_text(encoding="utf-8"))
    if place.startswith(KERNELS):
        found = [problem for problem in found if "no type" in problem]
    assert found == []


def test_the_rules_can_fail():
    source = """
def f(a, *b, c, **d) -> "tuple[int, int, int] | None": ...
def g(a: int, b: int, c: int, d: int, e: int, f: int): return a, b, c
def _private(a: int, b: int, c: int, d: int, e: int, f: int) -> tuple[int, int, int]: ...
def fine(a: int, b: int, c: int, d: int, e: int, *, f: int) -> tuple[int, ...]: return a, b
class A:
    def __init__(self, a: int, b: int, c: int, d: int, e: int, f: int): ...
    def h(self, a):
        def inner(a): return 1, 2, 3
        return lambda: (1, 2, 3)
    @staticmethod
    def k(self): ...
"""
    assert problems(source) == [
        *(f"f: {name} has no type" for name in ("a", "c", "b", "d")),
        *("f: a bare tuple of more than two", "g: 6 positional arguments", "g: a bare tuple of more than two"),
        *("A.__init__: 6 positional arguments", "A.h: a has no type", "A.h.inner: a has no type"),
        "A.k: self has no type",
    ]
