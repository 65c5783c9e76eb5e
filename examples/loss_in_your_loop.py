"""A certified loss in your own training loop: the bound and the loss are modules, nothing else is needed.

python examples/loss_in_your_loop.py
"""

from __future__ import annotations

import click
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.losses import GloRoLoss, SparsityLoss, make_bound
from lirpa_lip.margin import certified, margin_specification
from lirpa_lip.nn import ClippedReLU
from lirpa_lip.training.data import load_data


@click.command()
@click.option("--steps", default=300, show_default=True)
@click.option("--eps", default=0.3, show_default=True)
def main(steps: int, eps: float) -> None:
    torch.manual_seed(0)
    data = load_data("digits")
    model = nn.Sequential(
        nn.Conv2d(1, 8, 4, stride=2, padding=1), ClippedReLU((8, 4, 4)), nn.Flatten(), nn.Linear(128, 10)
    )

    # The bound belongs to the model; it keeps one vector per layer, and is called once per step.
    bound = make_bound("local-product", model, torch.zeros(1, 1, 8, 8), interval_gradients=True)
    loss_function, sparsity = GloRoLoss(), SparsityLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        images, labels = data.train.batch(torch.randint(len(data.train), (64,)))
        radius = eps * min(1.0, 2 * step / steps)  # start with plain cross-entropy, end with the whole ball
        output = bound(images, radius, labels)
        loss = loss_function(output.logits, output.pair_lipschitz, radius, labels, output.region)
        loss = loss + 0.01 * sparsity(output.intervals)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # Training used estimates. This is a certificate.
    images, labels = data.test.batch(torch.arange(100))
    bounded = BoundedModule(model.eval(), torch.zeros_like(images[:1]))
    ball = BoundedTensor(images, PerturbationLpNorm(norm=2, eps=eps))
    with torch.no_grad():
        lower, _ = bounded.compute_bounds(x=(ball,), C=margin_specification(labels, 10), method="local-lip")
        clean = (model(images).argmax(dim=1) == labels).float().mean()
    kind, delta = bounded.last_certificate
    share = certified(lower).float().mean()
    click.echo(f"clean {clean:.1%}, certified {share:.1%} at ε = {eps} ({kind}, fails with probability ≤ {delta:g})")


if __name__ == "__main__":
    main()
