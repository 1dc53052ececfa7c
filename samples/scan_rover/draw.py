"""Draws the paths that drive.py recorded: one panel a command, the path driven over the true one.

    python samples/scan_rover/draw.py drive.json drive.png

Forward is up and left is left, as seen by somebody who stands behind the rover at its start.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator
from matplotlib.transforms import offset_copy

INK, GRID = "#22262b", "#dfe3e8"
TRUE, DRIVEN = "#f2c66d", "#2b6cb0"
RIGHT, WRONG = "#2f8f4e", "#c8362b"
COLUMNS = 5
GRID_M = 0.5
LEAST_M = 0.1
"""What is nearer than this is one place: a rover does not come back to the millimetre."""
MARKERS = {"I_JUMP": ("^", "#8e44ad", "jump"), "I_LOOK": ("o", "#d9480f", "look")}


def draw(result: Path, picture: Path) -> None:
    """Reads drive.py's record and writes one PNG."""
    record = json.loads(result.read_text(encoding="utf-8"))
    commands = record["commands"]
    rows = math.ceil(len(commands) / COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(3.3 * COLUMNS, 4.0 * rows + 1.2), squeeze=False)
    for panel in axes.flat[len(commands) :]:
        panel.axis("off")
    for panel, command in zip(axes.flat, commands):
        _draw_command(panel, command)
    _draw_frame(figure, commands)
    figure.savefig(picture, dpi=130, facecolor="white")
    pyplot.close(figure)


def _draw_frame(figure: Figure, commands: list[dict[str, Any]]) -> None:
    """Title, legend and scale; distances from the top are in inches, whatever the number of rows."""
    height = figure.get_size_inches()[1]
    correct = sum(command["correct"] for command in commands)
    title = f"{correct} of {len(commands)} held-out commands driven correctly"
    figure.suptitle(title, x=0.02, y=1 - 0.2 / height, ha="left", va="top", fontsize=18, weight="bold", color=INK)
    symbols = [
        Line2D([], [], color=color, marker=shape, linestyle="", markersize=8, label=f"{label}, and how often")
        for shape, color, label in MARKERS.values()
    ]
    figure.legend(
        handles=[
            Line2D([], [], color=TRUE, linewidth=8, solid_capstyle="round", label="true path"),
            Line2D([], [], color=DRIVEN, linewidth=2, label="driven path"),
            Line2D([], [], color=INK, marker="o", markerfacecolor="white", linestyle="", markersize=11, label="start"),
            Line2D([], [], color=INK, marker="^", linestyle="", markersize=9, label="end, pointing where it looks"),
            *symbols,
            Line2D([], [], color=GRID, marker="s", linestyle="", markersize=11, label=f"one square: {GRID_M} m"),
        ],
        loc="upper left",
        bbox_to_anchor=(0.013, 1 - 0.58 / height),
        ncols=7,
        frameon=False,
        fontsize=11,
        labelcolor=INK,
    )
    figure.subplots_adjust(left=0.02, right=0.985, bottom=0.4 / height, top=1 - 1.6 / height, wspace=0.08, hspace=0.36)


def _draw_command(panel: Axes, command: dict[str, Any]) -> None:
    driven, true = _points(command["driven"]), _points(command["true"])
    panel.plot(*zip(*true), color=TRUE, linewidth=8, solid_capstyle="round", solid_joinstyle="round", zorder=2)
    panel.plot(*zip(*driven), color=DRIVEN, linewidth=2, zorder=3)
    _draw_directions(panel, [_point(pose) for pose in command["step_ends"]])
    _draw_markers(panel, command["driven"]["markers"])
    # larger than the end's symbol, which often lies on it
    panel.plot(*driven[0], color=INK, marker="o", markerfacecolor="white", markersize=14, zorder=6)
    end, heading_rad = driven[-1], command["driven"]["poses"][-1]["heading_rad"]
    panel.plot(*end, color=INK, marker=(3, 0, math.degrees(heading_rad)), markersize=9, zorder=7)
    _frame_panel(panel, [*driven, *true])
    color = RIGHT if command["correct"] else WRONG
    verdict = "correct" if command["correct"] else "wrong"
    title = command["prompt"].replace(" and ", "\nand ").replace(" after ", "\nafter ")
    panel.set_title(title, fontsize=11.5, color=INK, weight="bold", pad=8)
    panel.set_xlabel(f"{verdict}, {command['largest_deviation_m']:.3f} m off", fontsize=11, color=color, weight="bold")


def _points(path: dict[str, Any]) -> list[tuple[float, float]]:
    """Where the poses lie on the picture, in m: to the right and up."""
    return [_point(pose) for pose in path["poses"]]


def _point(pose: dict[str, float]) -> tuple[float, float]:
    return -pose["y_m"], pose["x_m"]


def _draw_directions(panel: Axes, ends: list[tuple[float, float]]) -> None:
    """A small arrowhead in the middle of every step that leads somewhere."""
    for before, after in pairwise(ends):
        dx, dy = after[0] - before[0], after[1] - before[1]
        if math.hypot(dx, dy) < LEAST_M:
            continue
        middle, beyond = ((before[0] + part * dx, before[1] + part * dy) for part in (0.5, 0.51))
        style = {"arrowstyle": "-|>", "color": DRIVEN, "mutation_scale": 13, "shrinkA": 0, "shrinkB": 0}
        panel.annotate("", xytext=middle, xy=beyond, arrowprops=style, zorder=4)


def _draw_markers(panel: Axes, markers: list[dict[str, Any]]) -> None:
    """One symbol a place and kind, with a count where it happened more than once; jumps sit left of the looks."""
    counts: dict[tuple[str, float, float], int] = {}
    for marker in markers:
        x, y = _point(marker["pose"])
        key = (marker["action"], _place(x), _place(y))
        counts[key] = counts.get(key, 0) + 1
    for (action, x, y), count in counts.items():
        shape, color, _ = MARKERS[action]
        side = -1 if action == "I_JUMP" else 1
        beside = offset_copy(panel.transData, panel.get_figure(root=True), side * 9, 12, units="points")
        panel.plot(x, y, marker=shape, color=color, markersize=8, transform=beside, zorder=8)
        if count > 1:
            style: dict[str, Any] = {"color": color, "fontsize": 11, "weight": "bold", "ha": "center", "va": "center"}
            panel.annotate(str(count), (x, y), (side * 19, 12), textcoords="offset points", zorder=8, **style)


def _place(coordinate_m: float) -> float:
    return round(coordinate_m / LEAST_M) * LEAST_M


def _frame_panel(panel: Axes, points: list[tuple[float, float]]) -> None:
    """A square that holds the path, with room around it, on a grid."""
    xs, ys = zip(*points)
    half = max(max(xs) - min(xs), max(ys) - min(ys)) / 2 + 0.45
    x, y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    panel.set(xlim=(x - half, x + half), ylim=(y - half, y + half), aspect="equal")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MultipleLocator(GRID_M))
        axis.set_tick_params(length=0, labelbottom=False, labelleft=False)
    panel.grid(color=GRID, linewidth=1)
    panel.set_axisbelow(True)
    for spine in panel.spines.values():
        spine.set_color(GRID)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    draw(options.result, options.picture)


if __name__ == "__main__":
    main()
