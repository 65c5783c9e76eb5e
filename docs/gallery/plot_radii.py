"""
A map of certified radii of handwritten digits
==============================================

A small network on 8 × 8 digits: the largest ℓ₂ ball around each image that is known to be safe.
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import lirpa_lip
from lirpa_lip.plots import margin_against_radius, radius_histogram

torch.manual_seed(0)
x, y = (torch.tensor(v) for v in load_digits(return_X_y=True))
x = x.float() / 16
model = torch.nn.Sequential(torch.nn.Linear(64, 50), torch.nn.ReLU(), torch.nn.Linear(50, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3)
for _ in range(150):  # all but the first sixty images
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x[60:]), y[60:]).backward()
    optimizer.step()

# %%
# Held-out images, ordered by the radius that is certified; below each its radius, in units where a pixel goes from 0
# to 1. Where the prediction is wrong the radius speaks of that prediction, and stands in red.
records = lirpa_lip.certify(model.eval(), x[:60], y[:60], eps=0.3, method="local-lip", radius_steps=6)
order = sorted(range(60), key=lambda k: records[k].radius)
figure = Figure(figsize=(9, 6.2), layout="constrained")
for axes, k in zip(figure.subplots(5, 12).flat, order):
    record = records[k]
    axes.imshow(x[k].reshape(8, 8), cmap="gray_r")
    right = record.prediction == record.label
    axes.set_title(f"{record.radius:.2f}", y=-0.32, fontsize=9, color="black" if right else "#c0392b")
    axes.set_axis_off()
figure.suptitle("certified ℓ₂ radius of 60 held-out digits (red: prediction is wrong)", fontsize=11)
figure

# %%
# How the radii are distributed.
histogram = radius_histogram([r.radius for r in records])
histogram

# %%
# The margin alone does not say how large the ball is.
top = model(x[:60]).detach().topk(2).values
dots = margin_against_radius((top[:, 0] - top[:, 1]).tolist(), [r.radius for r in records])
dots
