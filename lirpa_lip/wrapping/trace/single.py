"""One number per sample, ``(batch,)``, kept as ``(batch, 1)``, up to where such numbers are put together again.

They come from ``x[:, 0] * x[:, 1]``, from sums without ``keepdim``, and from what is computed with these.
"""

from __future__ import annotations

from typing import Any

import torch

from lirpa_lip.wrapping.trace.dependence import argument, dtype, sizes

#: Operators on each number by itself: of one value that varies, or several.
_ELEMENTWISE = {
    f"aten::{name}"
    for name in """add sub rsub mul div neg abs relu leaky_relu elu celu selu silu gelu mish sigmoid tanh hardtanh
    hardsigmoid hardswish softplus softsign log_sigmoid clamp clamp_min clamp_max maximum minimum pow square sqrt rsqrt
    reciprocal exp exp2 expm1 log log1p log2 log10 sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc
    hypot logaddexp fmax fmin xlogy nan_to_num positive deg2rad rad2deg""".split()
}
#: Reductions, and which argument says whether the axes are kept.
_KEEP = {f"aten::{n}": 2 for n in "mean sum amax amin logsumexp prod max min".split()} | {
    f"aten::{n}": 3 for n in "norm linalg_vector_norm std var pairwise_distance".split()
}
#: ``x[:]``, which comes before a new axis.
_WHOLE = [[0, start, end, 1] for start in (0, None) for end in (None, 2**63 - 1)]
_RESHAPES = {f"aten::{n}" for n in "view reshape squeeze _unsafe_view".split()}


class Singles:
    """Goes once through a trace; what is replaced is left to dead code elimination."""

    def __init__(self, rewriter: Any) -> None:
        self.rewriter, self.kept = rewriter, dict[str, Any]()

    def run(self) -> None:
        for node in list(self.rewriter.graph.nodes()):
            if any(self.rewriter.depends.varies(v) for v in node.inputs()):
                self.rewriter.graph.setInsertPoint(node)
                self._join(node)
                self._keep(node)
        self.rewriter.graph.setInsertPoint(self.rewriter.graph.return_node())

    # ---- what makes them ------------------------------------------------------------------------------------------
    def _keep(self, node: Any) -> None:
        for index, value in enumerate(node.outputs()):
            if sizes(value) == [self.rewriter.batch] and (dtype(value) or torch.long).is_floating_point:
                made = self._made(node, index, value)
                if made is not None:
                    self.kept[value.debugName()] = made

    def _made(self, node: Any, index: int, value: Any) -> Any | None:
        kind, like = node.kind(), torch.empty(self.rewriter.batch, 1, dtype=dtype(value))
        x = next(iter(node.inputs()))
        shape = sizes(x)
        if kind == "aten::select" and shape and len(shape) == 2:
            position = argument(node, 2)
            if argument(node, 1) in (1, -1) and isinstance(position, int):
                return self._cut(x, position % shape[1], like)
        elif kind == "prim::ListUnpack" and x.node().kind() == "aten::unbind":
            source = next(iter(x.node().inputs()))
            shape = sizes(source)
            if argument(x.node(), 1) in (1, -1) and shape and len(shape) == 2:
                return self._cut(source, index, like)
        elif kind in _RESHAPES and shape and shape[0] == self.rewriter.batch:
            return self._flat(self.kept.get(x.debugName(), x), like)
        elif kind in _KEEP and shape and index == 0:
            return self._reduced(node, shape, like)
        elif kind == "aten::slice" and [argument(node, i) for i in range(1, 5)] in _WHOLE:
            return self.kept.get(x.debugName())
        elif kind in _ELEMENTWISE:
            return self._elementwise(node, like)
        return None

    def _cut(self, x: Any, position: int, like: torch.Tensor) -> Any:
        numbers = (self.rewriter.constant(n) for n in (1, position, position + 1, 1))
        return self.rewriter.insert("aten::slice", [x, *numbers], like)

    def _flat(self, x: Any, like: torch.Tensor) -> Any:
        return self.rewriter.insert("aten::reshape", [x, self.rewriter.integers([-1, 1])], like)

    def _reduced(self, node: Any, shape: list[int], like: torch.Tensor) -> Any | None:
        kind, keep, arguments = node.kind(), _KEEP[node.kind()], list(node.inputs())
        if len(arguments) <= keep or argument(node, keep) is not False or shape[0] != self.rewriter.batch:
            return None
        if kind in ("aten::max", "aten::min"):  # of which the positions are not read
            if any(v.uses() for v in list(node.outputs())[1:]):
                return None
            kind = kind.replace("::m", "::am")
            arguments[1] = self.rewriter.integers([argument(node, 1) % len(shape)])
        arguments[keep] = self.rewriter.constant(True)
        whole = torch.empty([shape[0], *[1] * (len(shape) - 1)], dtype=like.dtype)
        return self._flat(self.rewriter.insert(kind, arguments, whole), like)

    def _elementwise(self, node: Any, like: torch.Tensor) -> Any | None:
        arguments = []
        for value in node.inputs():
            if not self.rewriter.depends.varies(value):
                if (sizes(value) or [1]) != [1]:
                    return None
            elif value.debugName() not in self.kept:
                return None
            arguments.append(self.kept.get(value.debugName(), value))
        return self.rewriter.insert(node.kind(), arguments, like)

    # ---- what puts them together ----------------------------------------------------------------------------------
    def _join(self, node: Any) -> None:
        kind, values = node.kind(), list(node.inputs())
        kept = self.kept.get(values[0].debugName())
        if kind == "aten::unsqueeze" and kept is not None and argument(node, 1) in (1, -1):
            self.rewriter.replace(node, kept)
        elif kind == "aten::stack" and argument(node, 1) in (1, -1):
            parts = [self.kept.get(v.debugName()) for v in values[0].node().inputs()]
            if parts and all(p is not None for p in parts):
                listed = self.rewriter.tensors(parts)
                found = self.rewriter.insert("aten::cat", [listed, self.rewriter.constant(1)], node.output())
                self.rewriter.replace(node, found)
        elif kind in _RESHAPES and kept is not None and len(sizes(node.output()) or ()) > 1:
            target = [-1, *(sizes(node.output()) or ())[1:]]
            arguments = [kept, self.rewriter.integers(target)]
            self.rewriter.replace(node, self.rewriter.insert("aten::reshape", arguments, node.output()))
