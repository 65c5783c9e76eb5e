"""Peak memory, and plots, for the norm benchmarks."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.table import read


class _Peak(TorchDispatchMode):
    """Sums the bytes of storages that were made under it and are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {leaf.untyped_storage()._cdata for leaf in _strided((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for leaf in _strided(result):
            storage = leaf.untyped_storage()
            if storage._cdata not in known and storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def _strided(tree: object) -> Iterator[Tensor]:
    """Tensors with a storage; a sparse one is made of such tensors, which are counted as they are made."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided)


def peak_activations(run: Callable[[], object], activation_bytes: int) -> float:
    """Most bytes alive at once among those that a run makes, in activations. Work space inside a kernel is not seen."""
    with _Peak() as peak:
        run()
    return peak.peak / activation_bytes


def _share(eliminated: str) -> str:
    return "inactive neurons" if eliminated == "inactive" else f"{100 * float(eliminated):g} %"


def plot(results: Path, folder: Path) -> None:
    """``norms_error_<network>.png``: error of the product against time, one panel for each share eliminated."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    curves: dict[tuple[str, str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in read(results):
        # no error where a layer is dead in every sample: the product is 0, exactly, in every method
        if row["section"] == "speed" and row["mean_error"] not in ("", "nan"):
            key = (row["network"], row["weights"], row["eliminated"])
            curves[key][row["method"]].append((float(row["seconds"]), float(row["mean_error"])))
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted({key[0] for key in curves}):
        keys = [key for key in curves if key[0] == name]
        rows = (len(keys) + 2) // 3
        figure, axes = pyplot.subplots(rows, min(3, len(keys)), figsize=(11, 2.9 * rows), squeeze=False)
        for axis, key in zip(axes.flat, keys, strict=False):
            for method, points in curves[key].items():
                axis.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=method)
            axis.xaxis.set_minor_formatter(ticker.NullFormatter())
            axis.axhline(1e-3, color="grey", linewidth=0.7, linestyle=":")
            axis.set_title(f"{key[1]} weights, eliminated: {_share(key[2])}", fontsize=9)
            axis.set_xlabel("seconds")
            axis.set_ylabel("mean error of the product")
            axis.legend(fontsize=8)
        for axis in list(axes.flat)[len(keys) :]:
            axis.remove()
        figure.tight_layout()
        figure.savefig(folder / f"norms_error_{name}.png", dpi=110)
        pyplot.close(figure)
