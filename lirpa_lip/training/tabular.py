"""Small tables of real data, scaled to [0, 1], and a network trained on them: what monotonicity is asked about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lirpa_lip.errors import DataError, UnknownMethodError


@dataclass(frozen=True)
class Table:
    """Features ``x (samples, features)`` in [0, 1], targets ``y (samples,)`` in [0, 1], and the features' names."""

    name: str
    x: Tensor
    y: Tensor
    features: tuple[str, ...]
    classification: bool


def _scaled(values: np.ndarray) -> np.ndarray:
    low, high = values.min(0), values.max(0)
    return (values - low) / np.where(high > low, high - low, 1)


def _diabetes() -> Table:
    """442 patients, ten measurements, progression of the disease after a year (Efron et al., 2004)."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    return _table("diabetes", data.data, data.target, data.feature_names, False)


def _breast_cancer() -> Table:
    """569 tumours, thirty measurements, benign or not (Wolberg et al., 1995)."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return _table("breast_cancer", data.data, data.target, data.feature_names, True)


def _adult() -> Table:
    """The numeric columns of Adult (Kohavi, 1996), from OpenML.

    Raises:
        DataError: OpenML cannot be reached.
    """
    from sklearn.datasets import fetch_openml

    try:
        data = fetch_openml("adult", version=2, as_frame=True, parser="auto")
    except Exception as error:
        raise DataError(f"Adult comes from OpenML, which cannot be reached ({error}); use a bundled table.") from error
    frame = data.data.select_dtypes("number").dropna()
    target = (data.target.loc[frame.index] == ">50K").to_numpy()
    return _table("adult", frame.to_numpy(), target, frame.columns, True)


def _table(name: str, x: Any, y: Any, features: Any, classification: bool) -> Table:
    inputs, targets = (torch.from_numpy(_scaled(np.asarray(v, dtype=np.float64))).float() for v in (x, y))
    return Table(name, inputs, targets, tuple(str(f) for f in features), classification)


TABLES: dict[str, Callable[[], Table]] = {"diabetes": _diabetes, "breast_cancer": _breast_cancer, "adult": _adult}
"""Name -> reader. The first two are part of scikit-learn; Adult is downloaded."""


def load_table(name: str) -> Table:
    """The table of that name.

    Raises:
        UnknownMethodError: there is none.
        DataError: it cannot be downloaded.
    """
    if name not in TABLES:
        raise UnknownMethodError(name, TABLES, kind="table")
    return TABLES[name]()


class Trained(NamedTuple):
    """A network, its test accuracy or R², and the indices of the test samples."""

    network: nn.Module
    score: float
    held: Tensor


def train_mlp(table: Table, hidden: int = 32, epochs: int = 60, seed: int = 0, test: float = 0.2) -> Trained:
    """A two-layer ReLU network with one output (a score), trained by Adam."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(table.x), generator=generator)
    count = max(1, int(test * len(order)))
    held, used = order[:count], order[count:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (table.x.shape[1], hidden, hidden)
        net = nn.Sequential(
            *(m for a, b in zip(sizes[:-1], sizes[1:]) for m in (nn.Linear(a, b), nn.ReLU())), nn.Linear(hidden, 1)
        )
    loss = nn.BCEWithLogitsLoss() if table.classification else nn.MSELoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3, weight_decay=1e-4)
    for _ in range(epochs):
        for batch in used[torch.randperm(len(used), generator=generator)].split(64):
            optimizer.zero_grad()
            loss(net(table.x[batch]).squeeze(1), table.y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        score, target = net.eval()(table.x[held]).squeeze(1), table.y[held]
    if table.classification:
        return Trained(net, float(((score > 0) == (target > 0.5)).float().mean()), held)
    return Trained(net, float(1 - (score - target).square().sum() / (target - target.mean()).square().sum()), held)
