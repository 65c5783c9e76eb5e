"""A model of several inputs is refused with what to write, and what is written is bounded: one varies, or all."""

from __future__ import annotations

import pytest
import torch
from sampling import ball_points
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import UnsupportedOperatorError


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(x) + self.right(y)) * torch.tanh(self.right(y)))


class Joined(nn.Module):
    """Both in one tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, both: Tensor) -> Tensor:
        return self.model(both[:, :4], both[:, 4:])


class Fixed(nn.Module):
    """The second does not vary."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("y", y)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, self.y)


@pytest.fixture
def two() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return Two().double(), torch.randn(2, 4, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)


def test_refused_with_what_to_write(two):
    model, x, y = two
    with pytest.raises(UnsupportedOperatorError, match=r"2 inputs.*splits it"):
        BoundedModule(model, (x, y.expand(2, -1))).compute_bounds(
            x=(BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1)), y.expand(2, -1)), method="local-lip"
        )


@pytest.mark.parametrize("method", ["ibp", "crown", "local-lip", "local-lip-crown", "sdp-crown"])
def test_one_of_them_or_both_with_regions_of_their_own(two, method):
    model, x, y = two
    region = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.2)),)
    lower, upper = BoundedModule(Fixed(model, y), x).compute_bounds(x=region, method=method)
    values = torch.stack([model(p, y) for p in ball_points(x, 0.2, 100)])
    assert (lower <= values.amin(0)).all() and (upper >= values.amax(0)).all()

    # a box of 0.1 around x and of 0.02 around y, in the ball around both
    both = torch.cat([x, y.expand(2, -1)], 1)
    width = torch.cat([torch.full((4,), 0.1), torch.full((3,), 0.02)]).double()
    ball = PerturbationLpNorm(norm=2, eps=float(width.norm()), x_L=both - width, x_U=both + width)
    lower, upper = BoundedModule(Joined(model), both).compute_bounds(x=(BoundedTensor(both, ball),), method=method)
    generator = torch.Generator().manual_seed(0)
    points = both + width * torch.randn(200, 2, 7, generator=generator, dtype=torch.float64).sign()
    values = torch.stack([model(p[:, :4], p[:, 4:]) for p in points])
    assert (lower <= values.amin(0)).all() and (upper >= values.amax(0)).all()
