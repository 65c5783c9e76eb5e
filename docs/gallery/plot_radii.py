"""
Certified radii of handwritten digits
=====================================

A small network on 8 × 8 digits: the largest ℓ₂ ball around each image that is known to be safe.
"""

import torch
from sklearn.datasets import load_digits

import lirpa_lip
from lirpa_lip.plots import margin_against_radius, radius_histogram

torch.manual_seed(0)
x, y = (torch.tensor(v) for v in load_digits(return_X_y=True))
x = x.float() / 16
model = torch.nn.Sequential(torch.nn.Linear(64, 50), torch.nn.ReLU(), torch.nn.Linear(50, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3)
for _ in range(100):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x[40:]), y[40:]).backward()
    optimizer.step()

# %%
# Held-out images; the radius of an image whose prediction is wrong speaks of that prediction.
records = lirpa_lip.certify(model.eval(), x[:40], y[:40], eps=0.25, method="local-lip")
radii = [r.radius for r in records]
histogram = radius_histogram(radii)
histogram

# %%
# The margin alone does not say how large the ball is.
top = model(x[:40]).detach().topk(2).values
dots = margin_against_radius((top[:, 0] - top[:, 1]).tolist(), radii)
dots
