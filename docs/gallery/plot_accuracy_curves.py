"""
Certified accuracy against the radius
=====================================

One network, four bounds: which share of images is classified rightly, and certainly so in the whole ball?
"""

import torch
from sklearn.datasets import load_digits

import lirpa_lip
from lirpa_lip.plots import accuracy_curves, method_comparison
from lirpa_lip.training.attack import survives_pgd

torch.manual_seed(0)
x, y = (torch.tensor(v) for v in load_digits(return_X_y=True))
x = x.float() / 16
sizes = [64, 60, 60, 60]
layers = [part for a, b in zip(sizes, sizes[1:]) for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
model = torch.nn.Sequential(*layers, torch.nn.Linear(60, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=3e-3)
for _ in range(150):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x[50:]), y[50:]).backward()
    optimizer.step()
model.eval()

# %%
# A radius for each held-out image and bound gives the whole curve. An attack gives a ceiling.
records = {
    method: lirpa_lip.certify(model, x[:50], y[:50], eps=0.25, method=method, radius_steps=8)
    for method in ("global-product", "crown", "local-lip", "sdp-crown")
}
radii = [0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9]
attacked = {eps: float(survives_pgd(model, x[:50], y[:50], eps, 40).float().mean()) for eps in radii}
figure = accuracy_curves(records, attacked=attacked, title="network of four layers on 50 held-out digits")
figure

# %%
# The same at one radius.
names = list(records)
shares = [sum(r.certified for r in records[name]) / 50 for name in names]
ceiling = float(survives_pgd(model, x[:50], y[:50], 0.25, 40).float().mean())
bars = method_comparison(names, shares, ceiling=ceiling, samples=50)
bars
