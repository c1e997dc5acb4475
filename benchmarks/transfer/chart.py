"""A line chart as SVG, for pages that are read on white or on black."""

from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#3b6fe0", "#d9822b", "#2f9e6e", "#b0457f", "#7a6bd0", "#8a8f98")
_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDTH, _HEIGHT = 56.0, 560.0, 16.0, 260.0, 880, 312


def line_chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Success in percent against a quantity.

    Args:
        title: of the quantity, below the axis.
        lines: by name, points of quantity and success in [0, 1].
    """
    places = sorted({x for points in lines.values() for x, _ in points})
    low, span = places[0], (places[-1] - places[0]) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + 8 + (_RIGHT - _LEFT - 16) * (x - low) / span, _BOTTOM - (_BOTTOM - _TOP) * y

    parts = [_frame(title)]
    for level in (0, 25, 50, 75, 100):
        y = at(low, level / 100)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{level} %</text>')
    parts += [
        f'<text x="{at(x, 0.0)[0]:.1f}" y="{_BOTTOM + 20}" text-anchor="middle">{x:g}</text>' for x in places
    ]
    for index, (name, points) in enumerate(lines.items()):
        colour, row = _COLOURS[index % len(_COLOURS)], _TOP + 12 + 22 * index
        drawn = [at(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        dash = ' stroke-dasharray="5 4"' if index % 2 else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"{dash}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in drawn]
        key = f'x1="{_RIGHT + 14}" x2="{_RIGHT + 38}" y1="{row}" y2="{row}"'
        parts.append(f'<line {key} stroke="{colour}" stroke-width="2.5"{dash}/>')
        parts.append(f'<text x="{_RIGHT + 44}" y="{row + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _frame(title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Success against {escape(title)}">\n'
        "<style>text { font: 13px system-ui, sans-serif; fill: #57606a; } .grid { stroke: #8883; }\n"
        "@media (prefers-color-scheme: dark) { text { fill: #9aa4b0; } }</style>\n"
        f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 44}" text-anchor="middle">{escape(title)}</text>'
    )
