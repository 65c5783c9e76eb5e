"""A report in one HTML file: figures as SVG, images as PNG inside it, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lirpa_lip.training.rows import write_whole
from lirpa_lip.verify.data import Samples
from lirpa_lip.verify.rows import Entry

#: Hardest instances that are shown.
_SHOWN = 12
_WIDTH, _HEIGHT, _MARGIN = 560, 260, 46
_COLOURS = {"certified": "#2a9d8f", "refuted": "#e76f51", "open": "#8d99ae"}
_STYLE = (
    "body{font-family:sans-serif;max-width:60rem;margin:2rem auto;color:#222}table{border-collapse:collapse}"
    "td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child"
    "{text-align:left}img{image-rendering:pixelated;width:96px;height:96px;margin-right:4px}figure{margin:1rem 0}"
    ".pair{display:inline-block;margin:.5rem 1rem .5rem 0;font-size:.8rem;vertical-align:top}"
)


def write_report(
    path: Path, title: str, samples: Samples, entries: Mapping[int, Entry], summary: Mapping[str, Any]
) -> None:
    """Writes it, complete or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    listed = list(entries.values())
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _counts(summary),
        f"<figure>{_margins(listed)}<figcaption>Least margin of every instance, sorted: from its lower bound to the "
        "least value seen. Certified where the lower end is above 0.</figcaption></figure>",
        _radius_parts(listed),
        _stages(summary),
        _hardest(listed, samples),
        _table(listed),
    ]
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    write_whole(path, f"{head}<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n")


def _counts(summary: Mapping[str, Any]) -> str:
    count = summary["instances"]
    cells = "".join(
        f"<tr><td>{name}</td><td>{summary[name]}</td><td>{100 * summary[name] / count:.1f} %</td></tr>"
        for name in _COLOURS
    )
    delta = summary["delta_per_instance"]
    worth = summary["certificate"] + (f", δ ≤ {delta:.1g} for each instance" if delta else "")
    return (
        f"<table><tr><th>verdict</th><th>instances</th><th>of {count}</th></tr>{cells}</table><p>Certificates: "
        f"{worth}. Median time {summary['seconds_median']:.2f} s, in all {summary['seconds_total']:.1f} s.</p>"
    )


def _margins(entries: Sequence[Entry]) -> str:
    drawn = sorted(
        (e.verdict.lower, min(e.verdict.upper, 10 * abs(e.verdict.lower) + 1), e.verdict.status)
        for e in entries
        if math.isfinite(e.verdict.lower)
    )
    if not drawn:
        return "<p>No instance has a finite bound.</p>"
    low, high = min(0.0, drawn[0][0]), max(0.0, *(max(a, b) for a, b, _ in drawn))
    scale = _Scale(0, max(1, len(drawn)), low, high)
    width = max(1, min(6, 400 / len(drawn)))
    lines = [
        f'<line x1="{scale.x(k + 0.5):.1f}" x2="{scale.x(k + 0.5):.1f}" y1="{scale.y(a):.1f}" '
        f'y2="{scale.y(max(a, b)):.1f}" stroke="{_COLOURS[status]}" stroke-width="{width:.1f}" stroke-linecap="round"/>'
        for k, (a, b, status) in enumerate(drawn)
    ]
    return scale.svg("instances", "margin", "".join(lines))


def _radius_parts(entries: Sequence[Entry]) -> str:
    radii = sorted(e.radius for e in entries if not math.isnan(e.radius))
    if not radii:
        return ""
    finite = [r if math.isfinite(r) else 0.0 for r in radii]
    top = max(*finite, 1e-12)
    curve = _Scale(0, top, 0, 1)
    points = [(0.0, sum(r >= 0 for r in radii) / len(entries))]
    for r in sorted({r for r in finite if r > 0}):
        points += [(r, points[-1][1]), (r, sum(other > r for other in finite) / len(entries))]
    drawn = " ".join(f"{curve.x(a):.1f},{curve.y(b):.1f}" for a, b in points)
    line = f'<polyline points="{drawn}" fill="none" stroke="{_COLOURS["certified"]}" stroke-width="2"/>'
    bins = 20
    counts = [0] * bins
    for r in finite:
        counts[min(bins - 1, int(bins * r / top))] += 1
    bars = _Scale(0, top, 0, max(counts))
    boxes = "".join(
        f'<rect x="{bars.x(top * k / bins) + 1:.1f}" width="{(_WIDTH - 2 * _MARGIN) / bins - 2:.1f}" '
        f'y="{bars.y(n):.1f}" height="{bars.y(0) - bars.y(n):.1f}" fill="{_COLOURS["certified"]}"/>'
        for k, n in enumerate(counts)
    )
    return (
        f"<figure>{curve.svg('radius', 'share certified', line)}<figcaption>Share of instances certified at each "
        f"radius.</figcaption></figure><figure>{bars.svg('radius', 'instances', boxes)}<figcaption>Certified radii."
        "</figcaption></figure>"
    )


class _Scale:
    """A figure's axes."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self.left, self.right, self.low, self.high = left, right, low, high if high > low else low + 1

    def x(self, value: float) -> float:
        return _MARGIN + (value - self.left) / (self.right - self.left) * (_WIDTH - 2 * _MARGIN)

    def y(self, value: float) -> float:
        return _HEIGHT - _MARGIN - (value - self.low) / (self.high - self.low) * (_HEIGHT - 2 * _MARGIN)

    def svg(self, across: str, up: str, content: str) -> str:
        zero = self.y(min(max(0.0, self.low), self.high))
        axes = (
            f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{zero:.1f}" y2="{zero:.1f}" stroke="#444"/>'
            f'<line x1="{_MARGIN}" x2="{_MARGIN}" y1="{_MARGIN}" y2="{_HEIGHT - _MARGIN}" stroke="#444"/>'
        )
        small = 'font-size="11" fill="#444"'
        words = (
            f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle" {small}>{across}</text>'
            f'<text x="4" y="{_MARGIN - 14}" {small}>{up}</text>'
            f'<text x="{_MARGIN - 4}" y="{self.y(self.high) + 4:.1f}" text-anchor="end" {small}>{self.high:.3g}</text>'
            f'<text x="{_MARGIN - 4}" y="{self.y(self.low) + 4:.1f}" text-anchor="end" {small}>{self.low:.3g}</text>'
            f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 28}" text-anchor="end" {small}>{self.right:.3g}</text>'
        )
        return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{axes}{words}{content}</svg>'


def _stages(summary: Mapping[str, Any]) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{seconds:.2f}</td><td>{summary['decided_by'].get(name, 0)}</td></tr>"
        for name, seconds in summary["seconds_by_stage"].items()
    )
    return f"<h2>Stages</h2><table><tr><th>stage</th><th>seconds</th><th>decided</th></tr>{lines}</table>"


def _hardest(entries: Sequence[Entry], samples: Samples) -> str:
    """Refuted ones with the largest clean distance to go, and open ones with the largest gap, as images."""
    if samples.x.ndim != 4 or samples.x.shape[1] not in (1, 3):
        return ""
    chosen = sorted((e for e in entries if e.verdict.status != "certified"), key=lambda e: -e.verdict.lower)[:_SHOWN]
    shown = []
    for entry in chosen:
        image = samples.x[entry.index]
        pictures = _png(image)
        if entry.verdict.counterexample is not None:
            pictures += _png(entry.verdict.counterexample[0])
        v = entry.verdict
        text = f"{entry.index}: {v.status}, label {v.label}, margin {v.lower:.3g} to {v.upper:.3g}"
        shown.append(f'<div class="pair">{pictures}<br>{html.escape(text)}</div>')
    if not shown:
        return ""
    return f"<h2>Hardest images</h2><p>Beside those that were refuted their counterexamples.</p>{''.join(shown)}"


def _png(image: Tensor) -> str:
    """An image (channels, height, width) in [0, 1] as an img element."""
    values = np.clip(np.round(image.double().numpy() * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    height, width, channels = values.shape
    raw = b"".join(b"\0" + values[row].tobytes() for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(raw)) + _chunk(b"IEND", b"")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data).decode("ascii")}">'


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _table(entries: Sequence[Entry]) -> str:
    def line(entry: Entry) -> str:
        v = entry.verdict
        label = "" if v.label is None else v.label
        head = f"<td>{entry.index}</td><td>{label}</td><td>{v.status}</td><td>{v.lower:.4g}</td><td>{v.upper:.4g}</td>"
        return f"<tr>{head}<td>{html.escape(v.decided_by)}</td><td>{v.total_seconds:.2f}</td></tr>"

    lines = "".join(map(line, entries))
    names = ("instance", "label", "status", "margin ≥", "seen ≤", "decided by", "s")
    head = f"<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    return f"<h2>Instances</h2><table>{head}{lines}</table>"
