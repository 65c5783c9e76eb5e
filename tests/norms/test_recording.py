"""Recorded steps give what steps one by one give: with a stand-in for the recording here, with CUDA graphs on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks.maps import BUILDERS, masks

from lirpa_lip.norms import NormResult, masked_spectral_norm, step_pair
from lirpa_lip.norms.kernels.recording import cuda_graph, recorder, use_recorder

OPTIONS = (
    {"certificate": "estimate", "rtol": 1e-6},
    {"certificate": "estimate", "rtol": 1e-3, "vectors": True},
    {"certificate": "estimate", "rtol": 1e-9, "max_iterations": 13, "vectors": True},
    {"certificate": "probabilistic", "rtol": 1e-4, "vectors": True},
)


class StandIn:
    """Runs where a graph would be replayed, and counts."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        function()

        def replay() -> None:
            self.replays += 1
            function()

        return replay


def solved(name: str, options: dict, device: str = "cpu") -> NormResult:
    torch.manual_seed(0)
    linear_map = BUILDERS[name](torch.float32)
    mask_in, mask_out = (mask.to(device) for mask in masks(linear_map, 0.3, True))
    generator = torch.Generator(device).manual_seed(1)
    return masked_spectral_norm(linear_map.to(device=device), mask_in, mask_out, generator=generator, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["large", "conv", "strided", "transposed", "composed"])
def test_steps_in_pairs_are_the_same_steps(monkeypatch: pytest.MonkeyPatch, name: str, options: dict) -> None:
    monkeypatch.setattr(step_pair, "WORTHWHILE", 2)
    stand_in = StandIn()
    with use_recorder(None):
        plain = solved(name, options)
    with use_recorder(stand_in):
        recorded = solved(name, options)
    assert recorded.iterations == plain.iterations
    for field in ("lower", "upper", "left", "right"):
        mine, theirs = getattr(recorded, field), getattr(plain, field)
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs), field
    if name == "composed":
        assert stand_in.recordings == 0  # what a composition does with its parts is not known beforehand
    elif options["rtol"] < 1e-3:
        assert stand_in.recordings > 0
        assert name != "large" or stand_in.replays > 0


def test_recording_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.delenv("LIRPA_LIP_CUDA_GRAPHS", raising=False)
    assert recorder(cuda) is None
    monkeypatch.setenv("LIRPA_LIP_CUDA_GRAPHS", "1")
    assert recorder(cuda) is cuda_graph
    assert recorder(torch.device("cpu")) is None


@pytest.mark.cuda
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["large", "conv", "strided", "transposed"])
def test_cuda_graphs_give_the_same(name: str, options: dict) -> None:
    with use_recorder(None):
        plain = solved(name, options, "cuda")
    with use_recorder(cuda_graph):
        recorded = solved(name, options, "cuda")
    torch.testing.assert_close(recorded.upper, plain.upper, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(recorded.lower, plain.lower, rtol=1e-5, atol=1e-6)
