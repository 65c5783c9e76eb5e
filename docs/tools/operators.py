"""Writes docs/operators.md from the operator table, the classes shown to auto_LiRPA and the rewritten traces.

python docs/tools/operators.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lirpa_lip.network.adapters.table import ADAPTERS, REFUSED, RELAXED
from lirpa_lip.wrapping.native import never
from lirpa_lip.wrapping.registration import ATEN, MISSING, OWN
from lirpa_lip.wrapping.trace.refuse import RULES
from lirpa_lip.wrapping.trace.rewrite import REWRITES

PAGE = Path(__file__).resolve().parents[1] / "operators.md"

OURS, THEIRS, BOTH = "ours", "theirs", "both"
_CONSTANT = "constant: no input of the model enters it"
_GRADIENT = "part of auto_LiRPA's graph of a Jacobian; `clarke-jacobian` needs none"
_STEP = "refused: a step function has no Lipschitz constant"

#: What auto_LiRPA 0.7.1 (or 0.3) has a class for and the operator table none.
OTHERS: dict[str, str] = {
    **dict.fromkeys(
        "Buffers Constant ConstantOfShape Params PrimConstant Range Shape".split(), _CONSTANT
    ),
    "Input": "the input itself",
    **dict.fromkeys(
        "ConcatGrad Conv2dGrad JacobianInit JacobianOP ReluGrad SigmoidGrad SliceGrad TanhGrad SqrGrad "
        "LeakyReluGrad GELUGrad MaxPoolGrad".split(), _GRADIENT
    ),
    **dict.fromkeys("Not SignMerge STEFunction".split(), _STEP),
    "ATenDiag": "refused: it works on the batch axis",
    "ATenDiagonal": "written as constant positions before it is lowered",
    "ATenUnflatten": "written as a reshape before it is lowered",
    "GatherElements": "written as constant positions before it is lowered; refused where the input chooses them",
    "LayerNormalization": "PyTorch lowers a layer norm to its parts, which are bounded",
    "RNN": "written out step by step before it is lowered",
    "Sec": "no operator of PyTorch becomes it",
    "Scatter": "refused: it writes into a part of a tensor",
    "ScatterElements": "refused: it writes into a part of a tensor",
    "OneHot": "refused: a step function of its input",
}  # fmt: skip

#: Bases of auto_LiRPA's classes, which are no operators.
ABSTRACT = frozenset(
    "Activation OptimizableActivation Reduce SShaped TwoPieceLinear MultiPiecewiseNonlinear MinMax TwoPieceLinear "
    "OptimizableNonLinear".split()
)


def classes(base: type) -> set[str]:
    """Names of auto_LiRPA's own bound classes, without ``Bound``."""

    def below(kind: type) -> Iterator[type]:
        for sub in kind.__subclasses__():
            yield sub
            yield from below(sub)

    return {c.__name__.removeprefix("Bound") for c in below(base) if c.__module__.startswith("auto_LiRPA")}


def page() -> str:
    ours = _ours()
    rows = [["operator", "IBP", "CROWN", "local", "Clarke", "what it is, or why it is refused"]]
    for key in sorted({*ADAPTERS, *RELAXED, *REFUSED}):
        if key in ADAPTERS:
            whose = ours.get(key, THEIRS)
            rows.append([_name(key), whose, whose, "yes", "yes", _first_line(ADAPTERS[key])])
        else:
            linear = "ours" if key in RELAXED else "no"
            rows.append([_name(key), linear, linear, "no", "no", f"refused: {_sentence(REFUSED[key])}"])
    for name in sorted(OTHERS):
        mark = "–" if not OTHERS[name].startswith("refused") else "no"
        rows.append([f"`{name}`", *[mark] * 4, OTHERS[name]])
    rewritten = sorted(k.removeprefix("aten::") for k in REWRITES)
    judged = sorted(k.removeprefix("aten::") for k in RULES if k not in REWRITES)
    return "\n\n".join([_HEAD, _table(rows), _REWRITTEN, _listed(rewritten), _REFUSED, _listed(judged)]) + "\n"


def _ours() -> dict[str, str]:
    """Of every key of the table that this package shows to auto_LiRPA, when its class is used."""
    found = {entry.key: _when(entry.native) for entry in MISSING.values()}
    found.update(dict.fromkeys(ATEN.values(), OURS))
    found.update(dict.fromkeys((made.__name__ for made in OWN.values()), OURS))
    return found


def _when(is_right: Callable[..., bool]) -> str:
    return OURS if is_right is never else BOTH


def _first_line(adapter: Any) -> str:
    return _sentence((adapter.__doc__ or "").strip().split("\n\n")[0])


def _sentence(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|").rstrip(".")


def _name(key: str) -> str:
    return f"`{key.removeprefix('Bound')}`"


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) + "."


_HEAD = """# Operators

This page is written by `python docs/tools/operators.py` from the tables in the code; a test compares them. The names
are those of auto_LiRPA's classes without `Bound`, which are ONNX' for most. Under IBP and CROWN, *theirs* is
auto_LiRPA's rule, *ours* one of this package, made from the operator's adapter, and *both* says that ours stands in
where theirs is wrong or missing. *Local* is `local-lip`, `sdp-crown` and the constants of `local_lipschitz`;
`local-lip-crown` needs CROWN too; *Clarke* is `clarke-jacobian`. Whatever a method has no rule for is an
`UnsupportedOperatorError` that names the operator, where it stands in the model, and what to do; a pole or the end of
a domain in reach is a `DomainError`. [Adding an operator](extending.md) takes one file."""

_REWRITTEN = """## Rewritten before they are lowered

PyTorch's operators that a trace is rewritten for, by compositions of the above or in a form that keeps all their
attributes:"""

_REFUSED = """## Looked at before they are lowered

Refused, some for certain arguments only, with the reason and what to write instead:"""


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
