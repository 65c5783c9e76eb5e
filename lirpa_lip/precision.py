"""float32 that is float32: no products of rounded factors while bounds are computed; and rounding in one direction.

On a GPU, PyTorch lets convolutions (by default) and matrix products (where asked to) round their float32 factors to
TensorFloat-32, ten bits of fraction, and on a CPU to bfloat16. Training does not mind; what is called a bound does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: Precisions by the names that settings give them.
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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


def rounded_up(value: float | Tensor, dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
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


#: Default types that `model_precision` has replaced, the caller's own first.
_replaced: list[torch.dtype] = []


@contextmanager
def model_precision(module: nn.Module) -> Iterator[None]:
    """auto_LiRPA makes some of its tensors in torch's default type, and then fails on a network of another."""
    before = torch.get_default_dtype()
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    _replaced.append(before)
    torch.set_default_dtype(first.dtype if first is not None else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        _replaced.pop()


@contextmanager
def callers_precision() -> Iterator[None]:
    """Within `model_precision`, the default type as the caller has it: in that a model's forward makes its tensors."""
    now = torch.get_default_dtype()
    torch.set_default_dtype(_replaced[0] if _replaced else now)
    try:
        yield
    finally:
        torch.set_default_dtype(now)


@contextmanager
def forward_in_callers_precision(model: nn.Module) -> Iterator[None]:
    """Within the context every forward pass of ``model`` runs in `callers_precision`."""
    inside: list[Any] = []

    def enter(*_: Any) -> None:
        inside.append(callers_precision())
        inside[-1].__enter__()

    def leave(*_: Any) -> None:
        inside.pop().__exit__(None, None, None)

    hooks = [model.register_forward_pre_hook(enter), model.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        while inside:  # a forward pass that failed
            leave()
