"""Draw docs/figures/phase_portrait.svg: the worst-case flow of one gate and its weights.

Run: python docs/figures/phase_portrait.py
"""

from pathlib import Path

PRICE, BOUND, DECAY = 0.5, 1.0, 0.8  # c, G, lambda
NORM_MAX, SIZE, MARGIN, DT = 1.25, 420, 50, 0.01


def path(theta: float, norm: float) -> list[tuple[float, float]]:
    """theta' = G ||w|| - c, ||w||' = theta G - lambda ||w||, until it leaves or rests."""
    points = [(theta, norm)]
    for _ in range(1500):
        theta += DT * (BOUND * norm - PRICE)
        norm += DT * (theta * BOUND - DECAY * norm)
        theta = min(1.0, max(0.0, theta))
        if norm > NORM_MAX:
            break
        points.append((theta, norm))
    return points


def place(theta: float, norm: float) -> tuple[float, float]:
    """Pixel of a point."""
    return MARGIN + theta * SIZE, MARGIN + SIZE * (1 - norm / NORM_MAX)


def line(points: list[tuple[float, float]], colour: str) -> str:
    """A trajectory, its start marked by a dot."""
    text = " ".join("{:.1f},{:.1f}".format(*place(*p)) for p in points[::10])
    return (
        f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="1.5" '
        'marker-start="url(#dot)"/>'
    )


def main() -> None:
    """Write the figure."""
    starts = [(x / 8, y * NORM_MAX / 8) for x in range(1, 9) for y in range(1, 8)]
    lines = []
    for start in starts:
        points = path(*start)
        lines.append(line(points, "#b5482f" if points[-1][0] == 0 else "#2f6fb5"))
    left, top = place(0, PRICE / BOUND)
    right, bottom = place(DECAY * PRICE / BOUND**2, 0)
    label = 'font-family="sans-serif" font-size="14"'
    svg = f"""<svg xmlns="http://www.w3.org/2000/svg" width="520" height="520">
<defs><marker id="dot" markerWidth="6" markerHeight="6" refX="3" refY="3">
<circle cx="3" cy="3" r="2" fill="#555"/></marker></defs>
<rect width="520" height="520" fill="white"/>
<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"
 fill="#f3d9a4"/>
<rect x="{MARGIN}" y="{MARGIN}" width="{SIZE}" height="{SIZE}" fill="none" stroke="#555"/>
{chr(10).join(lines)}
<text x="{left + 6:.1f}" y="{bottom - 8:.1f}" {label}>A</text>
<text x="{right:.1f}" y="{bottom + 18:.1f}" {label} text-anchor="middle">λc/G²</text>
<text x="{left - 6:.1f}" y="{top + 5:.1f}" {label} text-anchor="end">c/G</text>
<text x="{MARGIN + SIZE}" y="{bottom + 18:.1f}" {label} text-anchor="middle">θ = 1</text>
<text x="{MARGIN - 6}" y="{MARGIN - 10}" {label}>‖w‖</text>
</svg>
"""
    Path(__file__).with_suffix(".svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
