"""One way from a model to the graph its bounds read: straight from an ``nn.Sequential``, else by a trace."""

from __future__ import annotations

from torch import Tensor, nn

from lirpa_lip.errors import UnsupportedOperatorError
from lirpa_lip.network.graph import NetworkGraph, build_graph
from lirpa_lip.network.sequential import SequentialReader


class ModelReader:
    """Reads a model's graph in every step, on its parameters as they are then.

    Args:
        model: a classifier; other networks than `SequentialReader` knows must be such as auto_LiRPA can trace.
        sample: an input, for its shape, precision and device.
    """

    def __init__(self, model: nn.Module, sample: Tensor) -> None:
        self._sequential: SequentialReader | None
        try:
            self._sequential = SequentialReader(model, sample)
        except UnsupportedOperatorError:
            from lirpa_lip.bounded_module import BoundedModule  # imports auto_LiRPA: seconds that few need

            self._sequential = None
            self._bounded = BoundedModule(model, sample[:1].detach().clone())

    @property
    def is_traced(self) -> bool:
        return self._sequential is None

    def __call__(self) -> NetworkGraph:
        if self._sequential is not None:
            return self._sequential.graph()
        from lirpa_lip.trust.live import refresh

        refresh(self._bounded)
        return build_graph(self._bounded)  # anew, since it may hold values computed from the weights
