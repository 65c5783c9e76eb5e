"""Lengths that may vanish: a sum of squares is never below 0, and a root has finite secants from the centre."""

import pytest
import torch
from sampling import assert_sound
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import NonFiniteError

FORMS = {
    "norm": lambda x: x.norm(dim=1, keepdim=True),
    "by hand": lambda x: x.square().sum(1, keepdim=True).sqrt(),
    "hypot": lambda x: torch.hypot(x, x.flip(1)),
    "behind it": lambda x: torch.relu(x.norm(dim=1, keepdim=True) - 0.05),
}


class Length(nn.Module):
    def __init__(self, form, first: bool) -> None:
        super().__init__()
        self.form, self.first = form, nn.Linear(3, 3) if first else nn.Identity()
        if first:
            self.first.bias.data.zero_()

    def forward(self, x):
        return self.form(self.first(x))


@pytest.mark.parametrize("method", ["local-lip", "sdp-crown", "local-lip-crown"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_bounds_of_a_length_around_zero(form, first, method):
    torch.manual_seed(3)
    model = Length(FORMS[form], first).double().eval()
    x = torch.tensor([[0.01, -0.02, 0.03], [0.3, 0.05, 0.1]], dtype=torch.float64)
    bounded = BoundedModule(model, x)
    ball = BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1))
    lower, upper = (t.detach() for t in bounded.compute_bounds(x=(ball,), method=method))
    c = torch.eye(lower.shape[1], dtype=torch.float64).expand(2, -1, -1)
    assert_sound(model, x, 0.1, c, lower, upper, tol=0)
    assert bool((upper < 0.6).all())  # useful, too


@pytest.mark.parametrize("ask", ["bounds at zero", "constant"])
def test_a_root_that_is_infinitely_steep(ask):
    x = torch.tensor([[0.0, 0.0, 0.0]]) if ask == "bounds at zero" else torch.tensor([[0.01, -0.02, 0.03]])
    bounded = BoundedModule(Length(FORMS["norm"], False), x)
    ball = BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1))
    with pytest.raises(NonFiniteError, match="infinitely steep at 0"):
        bounded.compute_bounds(x=(ball,), method="local-lip") if ask != "constant" else bounded.local_lipschitz((ball,))
