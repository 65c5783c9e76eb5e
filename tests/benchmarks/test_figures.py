"""Figures compare methods on the same images, and tell a zero from what was not run."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def row(verdicts: str, pgd: float, kind: str = "deterministic", note: str = "") -> dict[str, str]:
    numbers = {"images": str(len(verdicts)), "pgd": str(pgd), "cpu_seconds_per_image": "0.5"}
    return {**numbers, "verdicts": verdicts, "certificate": kind, "note": note}


def test_a_panel_compares_on_the_same_images(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import figures

    here = {
        "crown": row("1" * 40 + "0" * 160, 0.9),  # 100 % of the first 40, 20 % of all
        "ibp": row("0" * 200, 0.9),
        "local-lip": row("1" * 30 + "0" * 10, 0.8, "probabilistic"),
        "sdp-crown": row("1" * 8, 1.0),
        "alpha-crown": row("", 0.0, note="not run: 14 s of processor time for an image"),
    }
    axis = Figure().subplots()
    assert figures._panel(axis, [*here, "global-product"], here) == 40
    texts = [text.get_text() for text in axis.texts]  # from the lowest bar up
    assert texts[:3] == ["not run", "not run: 14 s an image", "only 8 images"]
    assert texts[3:] == ["75, 0.5 s, p", "0, 0.5 s, d", "100, 0.5 s, d"]
    (line,) = axis.lines
    assert set(line.get_xdata()) == {80.0}  # PGD on the 40, not on all that somebody saw
    hatched = [bar.get_hatch() is not None for bar in axis.patches]
    assert hatched == [True, True, True, False, False, False]
    assert 0 < axis.patches[4].get_width() < 1  # a zero is a bar
