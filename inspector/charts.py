"""Small SVG charts for the report: no script, no font, no colour of their own (the page's CSS classes paint them)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from .text import number, percent, printable

WIDTH, HEIGHT = 340, 150
BAR_WIDTH = 600
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 20
SMOOTH_FROM = 20  # points; shorter curves are shown as they are
HOVER_UP_TO = 400  # points; beyond this a column per point is narrower than a pixel
DRAWN = 1e300  # what is larger, either way, has differences that no float holds
LEAST = 1e-300  # what differs by less has no ticks between that a float holds

LANE, NAMED = 24, 60
"""Height of a line below a bar, and characters of the name on it."""
Points = Sequence[tuple[int, float]]
SpanRow = tuple[int, str, float, float]
"""Class of its colour, what it is, and in seconds its start and its length."""


@dataclass(frozen=True, slots=True)
class Whisker:
    """One row of the success chart: a share in [0, 1] with its interval, and the yardstick of the best constant policy."""

    label: str
    value: float
    low: float
    high: float
    greedy: bool
    constant: float | None


def line_chart(name: str, points: Points) -> Markup:
    """A curve over steps; from 20 points on the raw curve is faint and its running mean stands out.

    points: (step, value), steps ascending; values that are not finite, or beyond `DRAWN`, are left out. Pointing at a step shows its value.
    """
    finite = [(step, value) for step, value in points if _is_drawn(value)]
    if not finite:
        return Markup("")
    steps, values = [step for step, _ in finite], [value for _, value in finite]
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    first, last = steps[0], max(steps[-1], steps[0] + 1)

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return x, y

    out = [_open(f"{name} over steps {first} to {steps[-1]}", WIDTH, HEIGHT)]
    for tick in ticks:
        y = place(first, tick)[1]
        out.append(_line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        out.append(_text(LEFT - 6, y + 3.5, number(tick), "tick end"))
    out.append(_text(LEFT, HEIGHT - 5, str(first), "tick"))
    if steps[-1] > first:
        out.append(_text(WIDTH - RIGHT, HEIGHT - 5, f"step {steps[-1]}", "tick end"))
    if len(finite) >= SMOOTH_FROM:
        out.append(_path([place(*point) for point in finite], "curve faint"))
        finite_mean = list(zip(steps, running_mean(values, max(3, len(values) // 10)), strict=True))
        out.append(_path([place(*point) for point in finite_mean], "curve"))
    else:
        out.append(_path([place(*point) for point in finite], "curve"))
        out += [Markup('<circle class="dot" cx="{}" cy="{}" r="2.2"/>').format(*map(_round, place(*point))) for point in finite]
    if len(finite) <= HOVER_UP_TO:
        width = (WIDTH - LEFT - RIGHT) / max(1, len(finite))
        column = Markup('<g class="hover"><rect x="{}" y="{}" width="{}" height="{}"/><title>step {}: {}</title></g>')
        for step, value in finite:
            x = min(max(place(step, value)[0] - width / 2, LEFT), WIDTH - RIGHT - width)
            out.append(column.format(_round(x), TOP, _round(width), HEIGHT - TOP - BOTTOM, step, number(value)))
    return Markup("").join([*out, Markup("</svg>")])


@dataclass(frozen=True, slots=True)
class Series:
    """One line among several: its label, and (x, value, low, high) with x ascending; low and high are the value where no interval is known.
    dashed: how it is drawn.

    Example: `Series("run-1", ((1, 0.5, 0.4, 0.6), (2, 0.55, 0.45, 0.65)))`.
    """

    label: str
    points: tuple[tuple[int, float, float, float], ...]
    dashed: bool = False


def overlay_chart(name: str, lines: Sequence[Series], axis: str, called: Sequence[str] = (), least: float | None = None) -> Markup:
    """Several lines in one drawing, each on the band of its interval, in the classes `s0`, `s1`, … of its place; "" when all are empty.

    axis: what x counts. called: what each x from 0 on is called, where it is no number. least: where a dashed line says that values should
    be at least. Pointing at a line names it.
    """

    def at(x: int) -> str:
        return called[x] if called else f"{axis} {x}"

    kept = [(i, line.label, [p for p in line.points if all(map(_is_drawn, p))]) for i, line in enumerate(lines)]
    drawn = [(i, label, points) for i, label, points in kept if points]
    if not drawn:
        return Markup("")
    xs = [point[0] for *_, points in drawn for point in points]
    told = [bound for *_, points in drawn for point in points for bound in point[2:]] + ([] if least is None else [least])
    ticks = nice_ticks(min(told), max(told))
    low, high, first, last = ticks[0], ticks[-1], min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, value: float) -> tuple[float, float]:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    last_name = at(max(xs)) if called else str(max(xs))
    out = [_open(f"{name}, {at(first)} to {last_name}: {', '.join(label for _, label, _ in drawn)}", WIDTH, HEIGHT)]
    for tick in ticks:
        y = place(first, tick)[1]
        out.append(_line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        out.append(_text(LEFT - 6, y + 3.5, number(tick), "tick end"))
    out.append(_text(LEFT, HEIGHT - 5, at(first), "tick"))
    if max(xs) > first:
        out.append(_text(WIDTH - RIGHT, HEIGHT - 5, at(max(xs)), "tick end"))
    if least is not None:
        out.append(_line(LEFT, place(first, least)[1], WIDTH - RIGHT, place(first, least)[1], "constant"))
    shape = Markup('<{} class="{} s{}" points="{}"><title>{}</title></{}>')
    for i, label, points in drawn:
        edge = [place(x, upper) for x, _, _, upper in points] + [place(x, lower) for x, _, lower, _ in reversed(points)]
        if any(lower < upper for _, _, lower, upper in points):
            out.append(shape.format("polygon", "band", i, _points(edge), printable(label), "polygon"))
        out.append(
            shape.format(
                "polyline",
                "line dashed" if lines[i].dashed else "line",
                i,
                _points([place(x, v) for x, v, *_ in points]),
                printable(label),
                "polyline",
            )
        )
        if len(points) < SMOOTH_FROM:
            dot = Markup('<circle class="mark s{}" cx="{}" cy="{}" r="2.4"><title>{}</title></circle>')
            out += [dot.format(i, *map(_round, place(x, v)), printable(f"{label}, {at(x)}: {number(v)}")) for x, v, *_ in points]
    return Markup("").join([*out, Markup("</svg>")])


def whisker_chart(rows: Sequence[Whisker]) -> Markup:
    """Success per phase: a dot (hollow for greedy) on its 95 % interval, a short bar where the best constant policy is. A row with a value
    that is no share is left out."""
    rows = [row for row in rows if all(0 <= one <= 1 for one in (row.value, row.low, row.high, row.constant or 0.0))]
    width, left, right, row_height = 720, 132, 64, 30
    height = row_height * len(rows) + 26

    def x(share: float) -> float:
        return left + share * (width - left - right)

    out = [_open("success after each phase", width, height)]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        out.append(_line(x(share), 4, x(share), height - 22, "grid"))
        out.append(_text(x(share), height - 6, f"{share:.0%}", "tick middle"))
    dot = Markup('<circle class="{}" cx="{}" cy="{}" r="5"><title>{}</title></circle>')
    for i, row in enumerate(rows):
        y = 4 + row_height * (i + 0.5)
        out.append(_text(left - 12, y + 4, row.label, "label end"))
        if row.constant is not None:
            out.append(_line(x(row.constant), y - 9, x(row.constant), y + 9, "constant"))
        out.append(_line(x(row.low), y, x(row.high), y, "whisker"))
        told = f"{row.label}: {percent(row.value)}, 95 % interval {percent(row.low)} to {percent(row.high)}"
        out.append(dot.format("point hollow" if row.greedy else "point", _round(x(row.value)), _round(y), printable(told)))
        out.append(_text(width - right + 14, y + 4, percent(row.value), "label"))
    return Markup("").join([*out, Markup("</svg>")])


def span_chart(name: str, spans: Sequence[SpanRow], beside: Sequence[SpanRow] = ()) -> Markup:
    """One bar of spans. Pointing at one says what it is and how long. beside: spans that overlap, each with its name on a line of its own
    below."""
    end = max((start + length for _, _, start, length in (*spans, *beside)), default=0.0)
    if not 0 < end < DRAWN:
        return Markup("")
    foot = 40 + LANE * len(beside)
    out = [_open(name, BAR_WIDTH, foot + 4)]
    drawn = Markup('<rect class="mark s{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>')
    placed = [(2, 22, span) for span in spans] + [(40 + LANE * i, 8, span) for i, span in enumerate(beside)]
    for y, height, (colour, label, start, length) in placed:
        x, width = BAR_WIDTH * start / end, max(BAR_WIDTH * length / end, 0.5)
        out.append(drawn.format(colour, f"{x:.2f}", y, f"{width:.2f}", height, printable(f"{label}: {length:.3f} s")))
    out += [_text(0, 37 + LANE * i, label[:NAMED], "tick") for i, (_, label, _, _) in enumerate(beside)]
    out.append(_text(0, foot, "0", "tick"))
    out.append(_text(BAR_WIDTH, foot, f"{end:.3g} s", "tick end"))
    return Markup("").join([*out, Markup("</svg>")])


def bar_chart(name: str, bars: Sequence[tuple[str, float]], unit: str) -> Markup:
    """Bars under each other from 0 on, (what it is, value), each with its value at its end; "" when none is above 0. A value that is
    negative, or beyond `DRAWN`, is left out."""
    bars = [bar for bar in bars if 0 <= bar[1] <= DRAWN]
    most = max((value for _, value in bars), default=0.0)
    if not most:
        return Markup("")
    row, room = 26, 76
    told = ", ".join(f"{label} {number(value)} {unit}" for label, value in bars)
    out = [_open(f"{name}: {told}", WIDTH, row * len(bars) + 4)]
    for i, (label, value) in enumerate(bars):
        y, width = row * i + 4, (WIDTH - LEFT - room) * (value / most)
        out.append(_text(LEFT - 6, y + 15, label, "tick end"))
        out.append(Markup('<rect class="bar" x="{}" y="{}" width="{}" height="18"/>').format(LEFT, y, _round(max(width, 1.0))))
        out.append(_text(LEFT + width + 6, y + 15, f"{number(value)} {unit}", "tick"))
    return Markup("").join([*out, Markup("</svg>")])


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of `scatter_chart`: filled where it is one of the best, ringed where it is the one that was picked."""

    label: str
    x: float
    y: float
    best: bool = False
    picked: bool = False


def scatter_chart(name: str, dots: Sequence[Dot], axis: str, least: float | None = None, width: int = BAR_WIDTH) -> Markup:
    """Points in a plane with the best joined from left to right; "" without any. axis: what x is. least: where a dashed line says that x
    should be at least. Pointing at a dot names it."""
    dots = [dot for dot in dots if _is_drawn(dot.x) and _is_drawn(dot.y)]
    if not dots:
        return Markup("")
    across = nice_ticks(min([*(dot.x for dot in dots), *(() if least is None else (least,))]), max(dot.x for dot in dots))
    up = nice_ticks(min(0.0, *(dot.y for dot in dots)), max(0.0, *(dot.y for dot in dots)))
    height = HEIGHT + width // 4

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - across[0]) / (across[-1] - across[0]) * (width - LEFT - 4 * RIGHT)
        return right, TOP + (up[-1] - y) / (up[-1] - up[0]) * (height - TOP - 2 * BOTTOM)

    out = [_open(f"{name}: {', '.join(dot.label for dot in dots)}", width, height)]
    for tick in up:
        y = place(across[0], tick)[1]
        out += [_line(LEFT, y, width - 4 * RIGHT, y, "grid"), _text(LEFT - 6, y + 3.5, number(tick), "tick end")]
    for tick in across:
        x = place(tick, up[0])[0]
        out += [_line(x, TOP, x, height - 2 * BOTTOM, "grid"), _text(x, height - 2 * BOTTOM + 14, number(tick), "tick middle")]
    out.append(_text((LEFT + width) / 2, height - 5, axis, "tick middle"))
    if least is not None:
        out.append(_line(place(least, 0)[0], TOP, place(least, 0)[0], height - 2 * BOTTOM, "constant"))
    best = sorted((dot.x, dot.y) for dot in dots if dot.best)
    if len(best) > 1:
        out.append(_path([place(*one) for one in best], "curve faint"))
    mark = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>')
    for dot in dots:
        x, y = place(dot.x, dot.y)
        told = printable(f"{dot.label}: {axis} {number(dot.x)}, {number(dot.y)}")
        if dot.picked:
            out.append(mark.format("point hollow", _round(x), _round(y), 9, told))
        out.append(mark.format("point" if dot.best else "point hollow", _round(x), _round(y), 5, told))
        left = x > 2 * width / 3  # where what stands to the right of it would be cut
        out.append(_text(x - 12 if left else x + 12, y + 4, dot.label, "label end" if left else "label"))
    return Markup("").join([*out, Markup("</svg>")])


def is_best(place: tuple[float, float], places: Iterable[tuple[float, float]]) -> bool:
    """Whether none of the places is as far in both directions, and farther in one of them."""
    return not any(all(a >= b for a, b in zip(other, place, strict=True)) and other != place for other in places)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that enclose [low, high]. Example: (0.13, 0.87) -> [0, 0.2, 0.4, 0.6, 0.8, 1.0]."""
    assert all(map(_is_drawn, (low, high)))
    if high - low <= max(1e-9 * max(abs(low), abs(high)), LEAST):
        margin = abs(low) / 10 if abs(low) > LEAST else 0.5
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor - raw / power))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(start, stop + 1)]


def _is_drawn(value: float) -> bool:
    return -DRAWN <= value <= DRAWN


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` values, over fewer at both ends."""
    half = window // 2
    return [math.fsum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - half) : i + half + 1])]


def _open(title: str, width: int, height: int) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, printable(title))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, *map(_round, (x1, y1, x2, y2)))


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(kind, _round(x), _round(y), escape(printable(text)))


def _path(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    return Markup('<polyline class="{}" points="{}"/>').format(kind, _points(points))


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_round(x)},{_round(y)}" for x, y in points)


def _round(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
