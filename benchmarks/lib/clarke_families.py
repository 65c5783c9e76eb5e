"""The network families of Shi et al. (NeurIPS 2022), trained here at a small budget, and their data.

Random MLPs of growing width and depth on random clusters in 16 dimensions, small CNNs on 8×8 digits, an MLP and a CNN
on MNIST, CNNs on CIFAR-10. Shapes are those of the published code; weights are our own. MNIST is replaced by enlarged
digits of scikit-learn, and CIFAR left out, where their files are not there.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lib.networks import SHARED
from lirpa_lip.errors import DataError

Split = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Member:
    """One network of a family.

    Attributes:
        make: constructor.
        data: name of its data, see `load`.
        eps: radius of the ℓ∞ region.
        epochs: of training.
    """

    family: str
    name: str
    make: Callable[[], nn.Module]
    data: str
    eps: float
    epochs: int = 3


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers += [nn.Linear(a, b)] + ([nn.ReLU()] if i < len(sizes) - 2 else [])
    return nn.Sequential(*layers)


def small_cnn(width: int) -> nn.Sequential:
    """Two 3×3 convolutions on 8×8 images, one linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.ReLU(),
        nn.Conv2d(width, width, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 16, 10),
    )


def mnist_cnn() -> nn.Sequential:
    """Two 4×4 convolutions of 8 channels, stride 1, and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 4),
        nn.ReLU(),
        nn.Conv2d(8, 8, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 22 * 22, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def cifar_cnn(width: int = 4, linear: int = 32) -> nn.Sequential:
    """Two 3×3 convolutions, stride 1, and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.ReLU(),
        nn.Conv2d(width, width, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 28 * 28, linear),
        nn.ReLU(),
        nn.Linear(linear, 10),
    )


def members() -> list[Member]:
    """All of them, smallest first within each family."""
    found = [
        Member("width", f"mlp-3x{w}", lambda w=w: mlp((16, w, w, 10)), "clusters", 0.25, 20) for w in (8, 16, 32, 64)
    ]
    for depth in (2, 3, 4, 5):
        sizes = (16, *[32] * (depth - 1), 10)
        found.append(Member("depth", f"mlp-{depth}x32", lambda s=sizes: mlp(s), "clusters", 0.25, 20))
    found += [Member("cnn", f"cnn-{w}", lambda w=w: small_cnn(w), "digits", 0.1, 10) for w in (2, 4)]
    found.append(Member("mnist", "mnist-mlp-20", lambda: mlp((784, 20, 20, 10)), "mnist", 8 / 255))
    found.append(Member("mnist", "mnist-cnn", mnist_cnn, "mnist", 1 / 255, 1))
    found.append(Member("cifar", "cifar-cnn-4", cifar_cnn, "cifar10", 1 / 255, 2))
    return found


def load(name: str) -> Split:
    """Training inputs, training labels and test inputs of ``clusters``, ``digits``, ``mnist`` or ``cifar10``.

    Raises:
        DataError: CIFAR-10 is not there.
    """
    if name == "clusters":
        return _clusters()
    if name == "cifar10":
        return _cifar10(SHARED / "data" / "cifar10_jpeg.npz")
    from lirpa_lip.training.data import load_data

    try:
        folder = None if name == "digits" else SHARED / "data"
        bundle = load_data(name, folder, validation=0, limit=None if name == "digits" else 6000)
    except DataError:
        if name != "mnist":
            raise
        x, y, test = load("digits")
        larger = [F.interpolate(t, size=(28, 28), mode="bilinear") for t in (x, test)]
        return larger[0], y, larger[1]
    x, y = bundle.train.batch(torch.arange(len(bundle.train)))
    return x, y, bundle.test.batch(torch.arange(min(20, len(bundle.test))))[0]


def _cifar10(archive: Path, train: int = 6000, test: int = 20) -> Split:
    """The first images of an archive of JPEG bytes (which are lossy: figures differ a little from the original
    pixels)."""
    if not archive.is_file():
        raise DataError(f"{archive} is not there.")
    parts = []
    with np.load(archive) as stored:
        for split, count in (("train", train), ("test", test)):
            data, ends = stored[f"{split}_jpeg"], stored[f"{split}_offset"][: count + 1]
            images = (Image.open(io.BytesIO(data[a:b].tobytes())) for a, b in zip(ends[:-1], ends[1:], strict=True))
            stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
            parts.append(torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255)
        labels = torch.from_numpy(stored["train_label"][:train]).long()
    return parts[0], labels, parts[1]


def _clusters(points: int = 2000, leaders: int = 60, dimension: int = 16) -> Split:
    """Uniform points; some lead, with a random label each, and every point takes its nearest leader's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(points, dimension, generator=generator)
    labels = torch.randint(0, 10, (leaders,), generator=generator)
    y = labels[torch.cdist(x, x[:leaders]).argmin(1)]
    return x[:-100], y[:-100], x[-100:]


def train(member: Member, split: Split) -> nn.Module:
    """The network, trained by Adam; the same every time."""
    x, y, _ = split
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = member.make()
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        for _ in range(member.epochs):
            for batch in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(net(x[batch]), y[batch]).backward()
                optimizer.step()
    return net.eval()
