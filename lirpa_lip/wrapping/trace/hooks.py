"""auto_LiRPA's tracing with our preparation in the middle of it, for as long as one model is converted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.onnx.symbolic_helper
import torch.onnx.symbolic_opset9
import torch.onnx.symbolic_opset10
from auto_LiRPA import parse_graph
from torch import nn

from lirpa_lip.errors import LirpaLipError, UnsupportedOperatorError
from lirpa_lip.wrapping.trace.attention import batch_first
from lirpa_lip.wrapping.trace.dependence import Dependence
from lirpa_lip.wrapping.trace.fold import Folded, Live, fold
from lirpa_lip.wrapping.trace.leaves import attach, perturbed
from lirpa_lip.wrapping.trace.refuse import refuse
from lirpa_lip.wrapping.trace.rewrite import Rewriter

_LOCK = threading.RLock()  # auto_LiRPA's functions are replaced for everybody while a model is converted

#: The ONNX version that graphs are lowered to: the last one whose definitions `torch.onnx` registers at its import.
#: Those of later versions come in with an export to ONNX anywhere in the process, or with single operators, so that
#: under the version auto_LiRPA asks for (12, or torch's own) one model would have different graphs at different times.
OPSET = 10


class Preparation:
    """What was found in the trace of one model.

    Attributes:
        folded: the values that parameters alone determine.
        unsettled: names of operators in training mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.folded: list[Folded] = []
        self.unsettled: list[str] = []
        self._names: list[str] = []
        self._tracing: Any = None

    def parameters(self, original: Callable, module: nn.Module, args: tuple, kwargs: dict) -> Iterator[tuple]:
        """auto_LiRPA's list of the graph's inputs behind the network's, read after the graph has been prepared."""
        known = list(original(module, *args, **kwargs))
        self._names, self._tracing = [name for name, _ in known], module
        return self._with_leaves(known)

    def _with_leaves(self, known: list[tuple]) -> Iterator[tuple]:
        yield from known
        if self._tracing is self.model:
            for folded in self.folded:
                yield folded.name, folded.value().detach()

    def graph(self, graph: Any) -> None:
        """Refuses, rewrites and folds, in the trace itself."""
        if self._tracing is not self.model:
            return  # a part auto_LiRPA traces on its own account
        torch._C._jit_pass_inline(graph)
        torch._C._jit_pass_lower_all_tuples(graph)
        torch._C._jit_pass_dce(graph)
        inputs = len(list(graph.inputs())) - len(self._names)
        places = [v.debugName() for v in list(graph.inputs())[inputs:]]
        values = {n: live.value for n, live in zip(places, map(self._live, self._names)) if live is not None}
        Rewriter(graph, Dependence.of(graph, inputs), values).run()
        torch._C._jit_pass_dce(graph)
        self.unsettled = refuse(graph, Dependence.of(graph, inputs), self.model.training)
        self.folded = fold(graph, Dependence.of(graph, inputs), inputs, [self._live(n) for n in self._names])
        torch._C._jit_pass_dce(graph)

    def _live(self, name: str) -> Live | None:
        path, _, last = name.rpartition(".")
        live = Live(self.model.get_submodule(path), last)
        return None if perturbed(live.value) else live

    def finish(self, bounded: Any) -> None:
        """Connects the leaves of the converted model."""
        attach(bounded, self.folded)


@contextmanager
def prepared(model: nn.Module) -> Iterator[Preparation]:
    """Within the context auto_LiRPA lowers prepared traces of ``model``.

    Raises:
        UnsupportedOperatorError: an operator that would be traced as something else, or that has no ONNX form.
    """
    preparation = Preparation(model)
    with _LOCK:
        optimize, parameters = parse_graph._optimize_graph, parse_graph._get_jit_params

        def prepare_and_optimize(graph: Any, *args: Any, **kwargs: Any) -> Any:
            preparation.graph(graph)
            try:
                with _opset(OPSET):
                    return optimize(graph, *args, **kwargs)
            except LirpaLipError:
                raise
            except Exception as error:
                raise UnsupportedOperatorError("the model", _blamed(error), reason=_reason(error)) from error

        parse_graph._optimize_graph = prepare_and_optimize
        parse_graph._get_jit_params = lambda module, *a, **k: preparation.parameters(parameters, module, a, k)
        try:
            with batch_first():
                yield preparation
        finally:
            parse_graph._optimize_graph, parse_graph._get_jit_params = optimize, parameters


@contextmanager
def _opset(version: int) -> Iterator[None]:
    # This object has moved between torch versions; a function of the helper that reads it knows where it is.
    settings = torch.onnx.symbolic_helper.check_training_mode.__globals__["GLOBALS"]
    before = settings.export_onnx_opset_version
    settings.export_onnx_opset_version = version
    try:
        yield
    finally:
        settings.export_onnx_opset_version = before


def _blamed(error: Exception) -> str:
    words = str(error).replace("'", " ").split()
    return next((w for w in words if w.startswith("aten::")), words[2] if words[:2] == ["symbolic", "for"] else "?")


def _reason(error: Exception) -> str:
    first = str(error).split("\n")[0]
    return f"PyTorch cannot lower it to ONNX ({first.rstrip('.')}); write it with other operators"
