"""Bounds are computed without TensorFloat-32, whatever the user's training runs with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm, masked_spectral_norm
from lirpa_lip.norms import solve
from lirpa_lip.norms.linear_map import DenseMap
from lirpa_lip.precision import true_float32

BACKENDS = torch.backends
NEW = [BACKENDS.cuda.matmul, *(getattr(BACKENDS.cudnn, name, None) for name in ("conv", "rnn"))]
NEW += [getattr(BACKENDS.mkldnn, name, None) for name in ("matmul", "conv")]
SWITCHES = [switch for switch in NEW if hasattr(switch, "fp32_precision")]


def state() -> list[object]:
    return [switch.fp32_precision for switch in SWITCHES]


def rounds() -> bool:
    """Whether any float32 product may round its factors."""
    if SWITCHES:
        return any(switch.fp32_precision not in ("ieee", "none") for switch in SWITCHES)
    return BACKENDS.cudnn.allow_tf32 or torch.get_float32_matmul_precision() != "highest"


@pytest.fixture(params=["defaults", "high", "medium", "off"])
def settings(request: pytest.FixtureRequest) -> Iterator[str]:
    before = (BACKENDS.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    if request.param in ("high", "medium"):
        torch.set_float32_matmul_precision(request.param)
    if request.param == "off":
        BACKENDS.cudnn.allow_tf32 = False
    yield request.param
    BACKENDS.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def test_the_context_leaves_no_rounding_and_no_trace(settings: str) -> None:
    before = state(), BACKENDS.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    assert rounds() == (settings != "off")
    with pytest.raises(KeyError), true_float32():
        assert not rounds()
        assert BACKENDS.cudnn.allow_tf32 is False  # the old switches can be read, too
        assert torch.get_float32_matmul_precision() == "highest"
        raise KeyError
    assert before == (state(), BACKENDS.cudnn.allow_tf32, torch.get_float32_matmul_precision())


@pytest.mark.skipif(not SWITCHES, reason="this torch has the old switches only")
def test_settings_that_the_old_switches_cannot_say() -> None:
    was, old = state(), BACKENDS.cudnn.allow_tf32
    try:
        BACKENDS.cudnn.conv.fp32_precision, BACKENDS.cudnn.rnn.fp32_precision = "ieee", "tf32"
        before = state()
        with true_float32():
            assert not rounds()
        assert state() == before
    finally:
        for switch, value in zip(SWITCHES, was, strict=True):
            switch.fp32_precision = value
        BACKENDS.cudnn.allow_tf32 = old  # else torch finds old and new switches at odds, and says so at every reading


class Products(TorchDispatchMode):
    """Notes of every matrix product whether it may round."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded: list[bool] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "mm" in function.__name__ or "mv" in function.__name__:
            self.rounded.append(rounds())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["ibp", "crown", "local-lip", "local-lip-crown", "sdp-crown"])
def test_bounds_are_computed_in_full(method: str) -> None:
    torch.set_float32_matmul_precision("high")
    try:
        bounded = BoundedModule(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 3))
        x = BoundedTensor(torch.zeros(1, 3), PerturbationLpNorm(norm=2, eps=0.1))
        with Products() as products:
            bounded.compute_bounds(x=(x,), method=method)
            if method.startswith("local-lip"):
                bounded.local_lipschitz((x,), method=method)
        assert products.rounded and not any(products.rounded)
        assert rounds()
    finally:
        torch.set_float32_matmul_precision("highest")


def test_norms_are_bounded_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate takes the user's settings, as the rest of a training step does."""
    seen: dict[str, bool] = {}

    def spied(name: str) -> solve.Solver:
        solver = solve.SOLVERS[name]
        return solve.Solver(solver.certificate, lambda *a: (seen.update({name: rounds()}), solver.run(*a))[1])

    for name in ("cholesky", "polynomial", "lanczos"):
        monkeypatch.setitem(solve.SOLVERS, name, spied(name))
    torch.set_float32_matmul_precision("high")
    try:
        for certificate in ("deterministic", "probabilistic", "estimate"):
            masked_spectral_norm(DenseMap(torch.randn(5, 4)), certificate=certificate)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == {"cholesky": False, "polynomial": False, "lanczos": True}
