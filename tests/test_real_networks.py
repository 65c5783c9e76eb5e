"""Networks that others trained: every certificate against sampled points, attacks and Jacobians."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sampling import assert_sound, ball_points
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.margin import margin_specification
from lirpa_lip.training.models import Normalize


def _load(folder, name: str, images: int):
    from safetensors.torch import load_file

    channels, features = (1, 1568) if name.startswith("mnist") else (3, 2048)
    body = nn.Sequential(
        *(nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(features, 100), nn.ReLU(), nn.Linear(100, 10)),
    )
    body.load_state_dict(load_file(folder / f"{name}.safetensors"))
    front = [] if channels == 1 else [Normalize((0.485, 0.456, 0.406), (0.225,) * 3)]
    net = nn.Sequential(*front, *body).eval().requires_grad_(False)
    data = np.load(folder / ("mnist_sdp200.npz" if channels == 1 else "cifar_sdp200.npz"))
    return net, torch.tensor(data["x"][:images]), torch.tensor(data["y"][:images]).long()


@pytest.mark.parametrize(("name", "eps"), [("mnist_cnn_a_adv", 0.3), ("cifar_cnn_a_adv", 16 / 255)])
@pytest.mark.parametrize("bound", ["product", "auto"])
def test_no_violation(shared_models, name, eps, bound):
    net, x, y = _load(shared_models, name, images=4)
    bounded = BoundedModule(net, x[:1], bound_opts={"local_lip": LocalLipConfig(bound=bound)})
    rows = margin_specification(y, 10)
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)
    with torch.no_grad():
        lower, upper = bounded.compute_bounds(x=ball, C=rows, method="local-lip")
        rate = bounded.local_lipschitz(x=ball, C=rows)
    assert_sound(net, x, eps, rows, lower, upper, count=20, tol=1e-4)
    assert (rate.lower <= rate.upper).all()
    for point in ball_points(x, eps, 5, seed=1):
        jacobian = torch.stack([torch.autograd.functional.jacobian(lambda z: net(z[None])[0], p) for p in point])
        assert ((rows @ jacobian.flatten(2)).norm(dim=2) <= rate.upper * (1 + 1e-5)).all()
