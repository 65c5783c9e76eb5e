"""
Lipschitz landscape of a network with two inputs
================================================

A valid local Lipschitz bound over a small ball around every point of a grid, beside the gradient's norm there.
"""

import torch
from matplotlib.figure import Figure

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm

torch.manual_seed(3)
model = torch.nn.Sequential(torch.nn.Linear(2, 24), torch.nn.ReLU(), torch.nn.Linear(24, 1)).eval()
axis = torch.linspace(-2, 2, 21)
points = torch.cartesian_prod(axis, axis)

bounded = BoundedModule(model, points[:1])
ball = (BoundedTensor(points, PerturbationLpNorm(norm=2, eps=0.1)),)
found = bounded.local_lipschitz(x=ball, C=torch.ones(len(points), 1, 1))
upper = found.upper.detach().reshape(21, 21)

inputs = points.clone().requires_grad_(True)
(gradient,) = torch.autograd.grad(model(inputs).sum(), inputs)
slope = gradient.norm(dim=1).reshape(21, 21)
assert (upper >= slope - 1e-5).all()

# %%
# The bound is at least the gradient's norm everywhere in the ball.
figure = Figure(figsize=(8, 3.6), layout="constrained")
for axes, values, title in zip(
    figure.subplots(1, 2), (slope, upper), ("‖∇f‖ at the point", "bound on the ball of 0.1")
):
    shown = axes.imshow(values.T, origin="lower", extent=(-2, 2, -2, 2), vmin=0, vmax=float(upper.max()))
    axes.set(title=title, xlabel="x₁", ylabel="x₂")
    figure.colorbar(shown, ax=axes)
figure
