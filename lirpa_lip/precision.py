"""float32 that is float32: no products of rounded factors while bounds are computed.

On a GPU, PyTorch lets convolutions (by default) and matrix products (where asked to) round their float32 factors to
TensorFloat-32, ten bits of fraction, and on a CPU to bfloat16. Training does not mind; what is called a bound does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def true_float32() -> Iterator[None]:
    """Within the context float32 products are exact to float32's own rounding; the settings before come back after."""
    undo = list(_settings())
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        for restore in undo:
            restore()


def _settings() -> Iterator[Callable[[], None]]:
    """What puts each present setting back: the old switches first, since they set several of the new ones."""
    backends = torch.backends
    # torch refuses to say what the old switches are where the new ones have been set apart from each other
    with contextlib.suppress(RuntimeError):
        tf32 = backends.cudnn.allow_tf32
        yield lambda: setattr(backends.cudnn, "allow_tf32", tf32)
    with contextlib.suppress(RuntimeError):
        product = torch.get_float32_matmul_precision()
        yield lambda: torch.set_float32_matmul_precision(product)
    for backend in (backends.cuda, backends.cudnn, backends.mkldnn):
        for operator in ("matmul", "conv", "rnn"):
            switch = getattr(backend, operator, None)
            if switch is not None and hasattr(switch, "fp32_precision"):
                yield _restorer(switch, switch.fp32_precision)


def _restorer(switch: object, value: str) -> Callable[[], None]:
    return lambda: setattr(switch, "fp32_precision", value)
