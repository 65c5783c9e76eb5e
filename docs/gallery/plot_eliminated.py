"""
Neurons that drop out, layer by layer
=====================================

Over a ball, bounds of every pre-activation say which ReLUs are linear there and which are constant. Constant ones drop
out of the weight matrices on both sides: that is what makes a Lipschitz bound local.
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.plots import neurons_by_layer

torch.manual_seed(1)
x, y = (torch.tensor(v) for v in load_digits(return_X_y=True))
x = x.float() / 16
sizes = [64, 60, 60, 60]
layers = [part for a, b in zip(sizes, sizes[1:]) for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
model = torch.nn.Sequential(*layers, torch.nn.Linear(60, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=1e-3)
for _ in range(150):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x[20:]), y[20:]).backward()
    optimizer.step()
model.eval()

# %%
# Every Lipschitz constant comes with the numbers; here on balls of radius 0.1 around twenty images.
bounded = BoundedModule(model, x[:1], bound_opts={"local_lip": LocalLipConfig(certificate="deterministic")})
found = bounded.local_lipschitz(x=(BoundedTensor(x[:20], PerturbationLpNorm(norm=2, eps=0.1)),))
counts = {f"layer {k}": counted for k, counted in enumerate(found.details["layers"].values(), start=1)}
figure = neurons_by_layer(counts)
figure

# %%
# The larger the ball, the more neurons are open and the fewer drop out, and the constant grows with it.
radii = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8]
constants, known, gone = [], [], []
for eps in radii:
    found = bounded.local_lipschitz(x=(BoundedTensor(x[:20], PerturbationLpNorm(norm=2, eps=eps)),))
    constants.append(float(found.upper.detach().mean()))
    known.append(100 * float(found.stable.float().mean()) / found.neurons)
    gone.append(100 * float(found.eliminated.float().mean()) / found.neurons)
curves = Figure(figsize=(7, 3.8), layout="constrained")
left = curves.subplots()
(first,) = left.semilogx(radii, constants, "o-", label="local Lipschitz bound")
right = left.twinx()
(second,) = right.semilogx(radii, known, "s--", color="#4c9f70", label="stable neurons, eliminated ones among them")
(third,) = right.semilogx(radii, gone, "^--", color="#9aa5b1", label="eliminated neurons")
left.set(xlabel="radius ε (ℓ₂)", ylabel="bound, mean of 20 images", ylim=(0, None))
right.set(ylabel="neurons (%)", ylim=(0, 105))
curves.legend(handles=[first, second, third], loc="outside lower center", frameon=False, fontsize=8, ncols=3)
curves
