"""Functions whose lowering, or PyTorch's own form, is not quite the one that is bounded: what differs is counted."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm

SINGLE = float(torch.tensor(math.sqrt(2.0)))
FORMS = {
    "gelu": F.gelu,
    "gelu by hand": lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))),
    "gelu, factor rounded to float32": lambda z: 0.5 * z * (1 + torch.erf(z / SINGLE)),
    "gelu, eight digits": lambda z: 0.5 * z * (1 + torch.erf(0.70710678 * z)),
    "gelu, six digits": lambda z: 0.5 * z * (1 + torch.erf(0.707107 * z)),
    "softplus": F.softplus,
    "power of two": torch.exp2,
    "power": lambda z: 0.3**z,
    "normal distribution": torch.special.ndtr,
}
#: Where the difference shows: in the tail, on a slope, and beyond the point where softplus turns into the identity.
POINTS = [-3.1, -1.4, -0.2, 1.4, 3.0, 20.001, 24.0]


class Own(nn.Module):
    def __init__(self, form) -> None:
        super().__init__()
        self.form, self.last = form, nn.Linear(len(POINTS), 2, bias=False)

    def forward(self, z):
        return self.last(self.form(z))


@pytest.mark.parametrize("method", ["local-lip", "sdp-crown", "local-lip-crown"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_bounds_hold_for_the_function_in_float64(form, dtype, method):
    torch.manual_seed(1)
    model = Own(FORMS[form]).to(dtype).eval()
    centre = torch.tensor([POINTS], dtype=dtype)
    bounded = BoundedModule(model, centre)
    exact = model.double()
    for eps in (0.0, 1e-6):
        for sign in (1.0, -1.0):
            ball = BoundedTensor(centre, PerturbationLpNorm(norm=2, eps=eps))
            rows = sign * torch.eye(2, dtype=dtype).unsqueeze(0)
            with torch.no_grad():
                value = sign * exact(centre.double())
            exact.to(dtype)
            lower, upper = bounded.compute_bounds(x=(ball,), C=rows, method=method)
            exact.double()
            assert bool((lower.double() <= value).all()) and bool((value <= upper.double()).all()), (eps, sign)
