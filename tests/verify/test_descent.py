"""The descent of branching: multipliers of neurons that are not cut must not disturb it."""

import pytest
import torch
from networks.small import convolutions

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.local import half_spaces
from lirpa_lip.verify.branch_settings import BranchSettings
from lirpa_lip.verify.branching import decide


@pytest.mark.parametrize("seed", range(3))
def test_free_rows_do_no_harm_where_nothing_is_cut(monkeypatch, seed):
    model = convolutions(seed)
    centre = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    bounded = BoundedModule(model, centre, bound_opts={"local_lip": LocalLipConfig(certificate="deterministic")})
    x = (BoundedTensor(centre, PerturbationLpNorm(norm=2, eps=0.3, x_L=0.0, x_U=1.0)),)
    c = torch.eye(4, dtype=torch.float64) - torch.eye(4, dtype=torch.float64)[[1, 2, 3, 0]]
    settings = BranchSettings(root_steps=30, refine=0, most_domains=1)
    far = torch.full((4,), -100.0, dtype=torch.float64)  # no row is decided, so that all steps are taken
    found = decide(bounded, x, c, far, time_limit=60.0, settings=settings).lower
    monkeypatch.setattr(half_spaces, "_OFFSET_STEP", 0.0)
    without = decide(bounded, x, c, far, time_limit=60.0, settings=settings).lower
    margin = model(centre).detach().flatten() @ c.T + far
    assert bool(torch.isfinite(without).all())
    assert bool((found >= without - 0.005 * (margin - without)).all())
