"""What is made of a rewritten value is rewritten too: it is no constant."""

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm

FORMS = {
    "tile of addmm": lambda x, w, b: torch.addmm(b, x, w).tile((1, 2)),
    "mm of mm": lambda x, w, b: torch.mm(torch.relu(torch.mm(x, w)), w) + torch.mm(torch.mm(x, w), w),
    "diff of mm": lambda x, w, b: torch.diff(torch.mm(x, w), dim=1),
    "celu of addmm": lambda x, w, b: torch.celu(torch.addmm(b, x, w), 0.5),
    "negative axis of mm": lambda x, w, b: torch.mm(x, w).sum(-1, keepdim=True),
    "einsum of logaddexp": lambda x, w, b: torch.einsum("bi,ij->bj", torch.logaddexp(x, x.flip(1)), w),
}


class Call(nn.Module):
    def __init__(self, form) -> None:
        super().__init__()
        self.form, self.w, self.b = form, nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x):
        return self.form(x, self.w, self.b)


@pytest.mark.parametrize("form", FORMS)
def test_one_rewriting_after_another(form):
    torch.manual_seed(0)
    model, x = Call(FORMS[form]).double().eval(), torch.randn(4, 3, dtype=torch.float64)
    point = BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.0))
    bounded = BoundedModule(model, x[:2])
    for method in ("ibp", "local-lip"):
        lower, upper = bounded.compute_bounds(x=(point,), method=method)
        assert torch.allclose(lower, model(x), atol=1e-9) and torch.allclose(upper, model(x), atol=1e-9)
