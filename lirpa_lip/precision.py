"""float32 that is float32: no products of rounded factors while bounds are computed; and rounding in one direction.

On a GPU, PyTorch lets convolutions (by default) and matrix products (where asked to) round their float32 factors to
TensorFloat-32, ten bits of fraction, and on a CPU to bfloat16. Training does not mind; what is called a bound does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


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


def rounded_up(value, dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
    """A number or tensor as a tensor of ``dtype``, no entry smaller than it was."""
    exact = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    exact = exact.to(device=device)
    near = exact.to(dtype)
    with torch.no_grad():
        lost = torch.where(near.double() < exact.double(), next_above(near) - near, 0.0)
    return near + lost


def next_above(x: Tensor) -> Tensor:
    """The next number above, with the gradient of x."""
    return x + (torch.nextafter(x, torch.full_like(x, torch.inf)) - x).detach()


def next_below(x: Tensor) -> Tensor:
    """The next number below, with the gradient of x."""
    return -next_above(-x)
