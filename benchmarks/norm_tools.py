"""Peak memory, GPU kernels against their rooflines, and plots, for the norm benchmarks."""

from __future__ import annotations

import csv
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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


def kernel_rows(seconds_of: Callable) -> Iterator[dict[str, object]]:
    """The Lanczos step against the measured copy bandwidth and against torch.compile of the reference; CUDA only."""
    if not torch.cuda.is_available():
        yield {"method": "lanczos_step", "note": "left out: no CUDA device"}
        return
    from lirpa_lip.norms.kernels import reference, triton

    compiled = torch.compile(reference.lanczos_step)
    for size, n in ((64, 6272), (256, 6272), (256, 32768)):
        arguments = [torch.randn(size, n, device="cuda") for _ in range(4)]
        z, mask, v, v_prev = arguments
        scale, beta = torch.rand(2, size, device="cuda")
        call = (z, (mask > 0).float(), scale, v, v_prev, beta)
        copied = _repeated(lambda z=z, v=v: v.copy_(z), seconds_of)
        bandwidth = 2 * z.numel() * 4 / copied
        times = {name: _repeated(lambda step=step, call=call: step(*call), seconds_of)
                 for name, step in (("triton", triton.lanczos_step), ("compile", compiled))}  # fmt: skip
        share = 5 * z.numel() * 4 / times["triton"] / bandwidth
        yield {"method": "lanczos_step", "setting": f"({size}, {n}) share of copy bandwidth", "value": share,
               "seconds": times["triton"]}  # fmt: skip
        yield {"method": "lanczos_step", "setting": f"({size}, {n}) torch.compile / triton",
               "value": times["compile"] / times["triton"], "seconds": times["compile"]}  # fmt: skip


def _repeated(call: Callable[[], object], seconds_of: Callable, count: int = 50) -> float:
    for _ in range(5):
        call()
    return seconds_of(lambda: [call() for _ in range(count)], 5)[0] / count


def _share(eliminated: str) -> str:
    return "inactive neurons" if eliminated == "inactive" else f"{100 * float(eliminated):g} %"


def plot(results: Path, folder: Path) -> None:
    """``norms_error_<network>.png``: error of the product against time, one panel for each share eliminated."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    curves: dict[tuple[str, str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    with results.open(newline="") as file:
        for row in csv.DictReader(file):
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
