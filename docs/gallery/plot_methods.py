"""
Methods beside each other
=========================

Certified accuracy of one network by three bounds, on the same images at the same radius.
"""

import torch
from sklearn.datasets import load_digits

import lirpa_lip
from lirpa_lip.plots import method_comparison

torch.manual_seed(0)
x, y = (torch.tensor(v) for v in load_digits(return_X_y=True))
x = x.float() / 16
model = torch.nn.Sequential(torch.nn.Linear(64, 50), torch.nn.ReLU(), torch.nn.Linear(50, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3)
for _ in range(100):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x[40:]), y[40:]).backward()
    optimizer.step()

methods = ["global-product", "crown", "local-lip"]
shares = []
for method in methods:
    records = lirpa_lip.certify(model.eval(), x[:40], y[:40], eps=0.25, method=method, radius_steps=0)
    shares.append(sum(r.certified for r in records) / len(records))
figure = method_comparison(methods, shares, samples=40)
figure
