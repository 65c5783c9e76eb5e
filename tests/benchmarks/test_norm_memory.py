"""A solve holds a fixed number of activations at once, however many steps it takes."""

from pathlib import Path

import pytest
import torch

from lirpa_lip import masked_spectral_norm
from lirpa_lip.norms.linear_map import Conv2dMap

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BATCH, SHAPE = 16, (16, 16, 16)


def problem(eliminated: float) -> tuple[Conv2dMap, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 16, 3, 3, generator=generator)
    masks = [(torch.rand(BATCH, *SHAPE, generator=generator) > eliminated).float() for _ in range(2)]
    return Conv2dMap(weight, SHAPE, 1, 1), *masks


@pytest.mark.parametrize("eliminated", [0.5, 0.87, 0.95])  # the last two on sparse matrices, of most entries and few
@pytest.mark.parametrize(
    ("certificate", "vectors", "width"),
    [("estimate", False, 4), ("estimate", True, 4), ("probabilistic", False, 8), ("probabilistic", True, 8)],
)
def test_a_solve_holds_at_most_twelve_activations(
    monkeypatch, certificate: str, vectors: bool, width: int, eliminated: float
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from lib import norm_tools

    arguments = problem(eliminated)
    # samples leave one after the other: what stays and what leaves must not both be copies of the whole
    activation = arguments[1].numel() * width

    def run() -> None:
        options = {"rtol": 1e-4, "max_iterations": 100, "vectors": vectors}
        masked_spectral_norm(*arguments, certificate=certificate, **options)

    assert 2 < norm_tools.peak_activations(run, activation) <= 12
