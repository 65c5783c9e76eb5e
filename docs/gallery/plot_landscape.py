"""
Lipschitz landscape of a network with two inputs
================================================

How steep is a network around every point? The gradient's norm *at* a point says nothing of the points beside it; a
local bound holds for all of the ball.
"""

import torch
from matplotlib.figure import Figure

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm

torch.manual_seed(3)
target = torch.cartesian_prod(torch.linspace(-2, 2, 41), torch.linspace(-2, 2, 41))
height = torch.sin(2 * target[:, :1]) * torch.cos(1.5 * target[:, 1:])
model = torch.nn.Sequential(
    torch.nn.Linear(2, 24), torch.nn.ReLU(), torch.nn.Linear(24, 24), torch.nn.ReLU(), torch.nn.Linear(24, 1)
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(400):
    optimizer.zero_grad()
    (model(target) - height).square().mean().backward()
    optimizer.step()
model.eval()

# %%
# A constant of every ball of radius 0.1 around the points of a grid, in one call.
points = torch.cartesian_prod(torch.linspace(-2, 2, 31), torch.linspace(-2, 2, 31))
settings = LocalLipConfig(certificate="deterministic")
bounded = BoundedModule(model, points[:1], bound_opts={"local_lip": settings})
ball = (BoundedTensor(points, PerturbationLpNorm(norm=2, eps=0.1)),)
found = bounded.local_lipschitz(x=ball, C=torch.ones(len(points), 1, 1))
upper = found.upper.detach().reshape(31, 31)

inputs = points.clone().requires_grad_(True)
(gradient,) = torch.autograd.grad(model(inputs).sum(), inputs)
slope = gradient.norm(dim=1).reshape(31, 31)
assert (upper >= slope - 1e-5).all()
print(f"at most {float(upper.max()):.1f} in any of these balls ({found.certificate})")

# %%
# The bound is at least the gradient's norm everywhere in the ball.
values = model(points).detach().reshape(31, 31)
figure = Figure(figsize=(11, 3.6), layout="constrained")
panels = (("f", values, "RdBu_r", None), ("‖∇f‖ at the point", slope, "magma", float(upper.max())),
          ("bound on the ball of 0.1", upper, "magma", float(upper.max())))  # fmt: skip
for axes, (title, shown, colours, top) in zip(figure.subplots(1, 3), panels):
    low = 0 if top else None
    image = axes.imshow(shown.T, origin="lower", extent=(-2, 2, -2, 2), vmin=low, vmax=top, cmap=colours)
    axes.set(title=title, xlabel="x₁", ylabel="x₂")
    figure.colorbar(image, ax=axes, shrink=0.75)
figure
