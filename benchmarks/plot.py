"""A line plot as a small SVG, written by hand: no plotting library for one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 70, 150, 40, 60
COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b4b94")

Points = Sequence[tuple[float, float]]


def line_plot(path: Path, title: str, x_label: str, y_label: str, lines: Mapping[str, Points]) -> None:
    """Write ``lines`` by name, x on a logarithmic scale, y from 0."""
    xs = sorted({x for points in lines.values() for x, _ in points})
    top = _round_up(max(y for points in lines.values() for _, y in points))

    def at(x: float, y: float) -> tuple[float, float]:
        span = math.log(xs[-1] / xs[0]) or 1
        across = LEFT + (WIDTH - LEFT - RIGHT) * math.log(x / xs[0]) / span
        return across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="13"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, TOP - 16, title, "start", bold=True),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_label),
        f'<g transform="translate(18 {HEIGHT / 2}) rotate(-90)">{_text(0, 0, y_label)}</g>',
    ]
    for step in range(5):
        y = top * step / 4
        (left, level), (right, _) = at(xs[0], y), at(xs[-1], y)
        parts.append(f'<path d="M{left:.1f} {level:.1f}H{right:.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, level + 4, f"{y:g}", "end"))
    parts += [_text(at(x, 0)[0], HEIGHT - BOTTOM + 20, f"{x:g}") for x in xs]
    for colour, (name, points) in zip(COLOURS, lines.items(), strict=False):
        places = [at(x, y) for x, y in points]
        route = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{route}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        parts.append(_text(places[-1][0] + 10, places[-1][1] + 4, name, "start", colour=colour))
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


def _round_up(value: float) -> float:
    """The next number of the form 1, 2, 4 or 8 times a power of ten."""
    power = 10 ** math.floor(math.log10(value or 1))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)


def _text(x: float, y: float, words: str, anchor: str = "middle", colour: str = "#222", *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(words)}</text>'
