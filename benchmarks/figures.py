"""Figures of benchmark results.

python benchmarks/figures.py     # build/figures/verify.png and training.png from results/*.csv

The site draws its own whenever it is built (docs/tools/pictures.py).
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

#: Method -> (name in figures, colour): others' in greys and cool colours, ours in warm ones.
STYLES = {
    "ibp": ("IBP", "#bbbbbb"),
    "crown-ibp": ("CROWN-IBP", "#999999"),
    "crown": ("CROWN", "#1f77b4"),
    "alpha-crown": ("α-CROWN", "#17becf"),
    "global-product": ("global product", "#555555"),
    "global-composed": ("global composed", "#222222"),
    "sdp-crown-global": ("SDP-CROWN (rendered)", "#9467bd"),
    "local-product": ("local product", "#bcbd22"),
    "local-lip": ("local-lip", "#ff7f0e"),
    "local-lip-crown": ("local-lip-crown", "#d62728"),
    "local-lip-tight": ("local-lip, tight", "#8c564b"),
    "sdp-crown": ("sdp-crown", "#e377c2"),
    "sdp-crown-tight": ("sdp-crown, tight", "#7f0000"),
}


#: Methods that saw fewer images are named in a panel but not compared in it.
FEWEST = 30
_KINDS = {"deterministic": "d", "probabilistic": "p"}


def draw_verification(rows: list[dict], path: Path) -> None:
    """Certified accuracy of every method: a panel per network and radius, all of its bars on the same images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [r for r in rows if r["method"] in STYLES]
    order = list(dict.fromkeys(r["network"] for r in rows))
    groups = sorted({(r["network"], r["eps"]) for r in rows}, key=lambda g: (order.index(g[0]), Fraction(g[1])))
    methods = [m for m in STYLES if any(r["method"] == m for r in rows)]
    columns = min(2, len(groups))  # so that a page of the site shows it in a size that can be read
    height = -(-len(groups) // columns)
    size = (4.6 * columns, 2.9 * height + 1.2)
    figure, axes = plt.subplots(height, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    for axis, (network, eps) in zip(axes.flat, groups, strict=False):
        here = {r["method"]: r for r in rows if (r["network"], r["eps"]) == (network, eps)}
        count = _panel(axis, methods, here)
        axis.set_title(f"{network}, ε = {eps}, n = {count}", fontsize=9)
    delta = max(float(r["delta"]) for r in rows if r["delta"])
    figure.suptitle(
        "Certified accuracy in % on the first n test images, the same for all bars of a panel;\n"
        "ε: ℓ₂ radius, pixels in [0, 1]; line: PGD on these images; beside each bar: per cent,\n"
        f"processor seconds per image (of all it saw), d deterministic, p probabilistic (δ ≤ {delta:g} per image)",
        fontsize=10,
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.1 / size[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis, methods: list[str], here: dict[str, dict]) -> int:
    """Bars on the images that every compared method saw; returns how many these are."""
    seen = {m: int(row["images"] or 0) for m, row in here.items()}
    compared = [m for m in methods if seen.get(m, 0) >= min(FEWEST, max(seen.values()))]
    count = min(seen[m] for m in compared)
    fewest = next(here[m] for m in compared if seen[m] == count)  # its PGD accuracy is that of just these images
    for place, method in enumerate(reversed(methods)):
        if method not in compared:
            text = f"only {seen[method]} images" if seen.get(method) else here.get(method, {}).get("note") or "not run"
            text = text.replace(" of processor time for an image", " an image")
            axis.barh(place, 100, color="none", edgecolor="#d8d8d8", hatch="////", linewidth=0)
            axis.text(3, place, text, va="center", fontsize=6, style="italic", color="#555555",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})  # fmt: skip
            continue
        row = here[method]
        value = 100 * row["verdicts"][:count].count("1") / count
        axis.barh(place, max(value, 0.8), color=STYLES[method][1])  # a 0 is a bar too, as thin as can be seen
        text = f"{value:.0f}, {float(row['cpu_seconds_per_image']):.2g} s, {_KINDS[row['certificate']]}"
        axis.text(102, place, text, va="center", fontsize=6)
    axis.axvline(100 * float(fewest["pgd"]), color="black", linewidth=1.2)
    axis.set_yticks(range(len(methods)), [STYLES[m][0] for m in reversed(methods)], fontsize=7)
    axis.set_ylim(-0.6, len(methods) - 0.4)
    axis.set_xlim(0, 100)
    axis.tick_params(axis="x", labelsize=7)
    return count


def _run_name(row: dict) -> str:
    sparsity = ", sparsity" if float(row["sparsity"]) else ""
    return f"{row['activation'].replace('_', ' ')}{sparsity}, {row['epochs']} epochs"


#: How a network was trained -> colour.
_TRAINING = {"plain": "#999999", "global-product": "#1f77b4", "local-product": "#ff7f0e", "local-lip": "#d62728"}


def draw_training(rows: list[dict], path: Path) -> None:
    """Best certified (bars), PGD (lines) and clean (dots) accuracy of every trained network, by setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    settings = sorted({row["setting"] for row in rows})
    most = max(sum(row["setting"] == s for row in rows) for s in settings)
    figure, axes = plt.subplots(1, len(settings), figsize=(5.2 * len(settings), 0.3 * most + 1.4), squeeze=False)
    for axis, setting in zip(axes.flat, settings, strict=True):
        here = sorted(
            (row for row in rows if row["setting"] == setting),
            key=lambda r: (r["activation"], int(r["epochs"]), list(_TRAINING).index(r["method"]), r["sparsity"]),
        )
        for place, row in enumerate(reversed(here)):
            best = max(float(value) for key, value in row.items() if key.startswith("certified_") and value)
            axis.barh(place, best, color=_TRAINING[row["method"]])
            inside = {"x": best - 1, "ha": "right", "color": "white"} if best > 15 else {"x": best + 1}
            axis.text(y=place, s=f"{best:g}", va="center", fontsize=7, **inside)
            axis.plot([float(row["pgd"])] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1.5)
            axis.plot(float(row["clean"]), place, "o", color="black", markersize=3)
        names = [_run_name(row) for row in here]
        axis.set_yticks(range(len(here)), names[::-1], fontsize=7)
        axis.set_xlim(0, 102)
        axis.set_title(setting.replace("-", ", ε = "), fontsize=9)
        axis.set_xlabel("% of test images", fontsize=8)
    handles = [Patch(color=color, label=name) for name, color in _TRAINING.items()]
    counts = sorted({int(row["samples"]) for row in rows})
    kinds = sorted({kind for row in rows for kind in row["certificate"].split("/")})
    figure.suptitle(
        "Certified (bars; the best of four certificates), PGD (lines) and clean accuracy (dots), by the bound trained"
        f" with\nn = {' or '.join(map(str, counts))} test images; ε: ℓ₂ radius, pixels in [0, 1]; "
        f"kinds: {', '.join(kinds)}",
        fontsize=10,
    )
    figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1))
    figure.legend(handles=handles, ncol=len(handles), fontsize=8, loc="lower center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    from tables import RESULTS, read

    folder = Path("build") / "figures"
    draw_verification(read(RESULTS / "verify.csv"), folder / "verify.png")
    draw_training(read(RESULTS / "train_cpu.csv"), folder / "training.png")
