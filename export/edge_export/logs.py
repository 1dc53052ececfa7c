"""A run's log: as CSV, as events for TensorBoard, and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_sdk.errors import ConfigError, explain
from edge_sdk.files import new_file

COLUMNS = ("step", "loss", "learning_rate", "tokens", "seconds")

Rows = Sequence[tuple[float, ...]]
"""One row of COLUMNS for each step."""


def write_log(rows: Rows, folder: Path) -> None:
    """log.csv, replaced as a whole."""
    with new_file(folder / "log.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(
            (step, f"{loss:.6f}", f"{rate:.3g}", tokens, f"{seconds:.2f}") for step, loss, rate, tokens, seconds in rows
        )


def add_events(rows: Rows, folder: Path) -> None:
    """Adds steps to the events that TensorBoard reads; later ones that an interrupted run left there no longer count.

    Raises ConfigError where the package tensorboard is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            explain("--tensorboard", expected="the package", found="none", todo="pip install edge-sdk[tensorboard]")
        ) from None
    if not rows:
        return
    with SummaryWriter(str(folder), purge_step=int(rows[0][0])) as writer:
        for step, *values in rows:
            for name, value in zip(COLUMNS[1:], values):
                writer.add_scalar(name, value, int(step))


def plot_losses(logs: list[Path], target: Path) -> None:
    """The losses of one or several log.csv files over steps, as a PNG: each step faintly, the mean of 20 clearly."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for log in logs:
        steps, values = _read_losses(log)
        width = min(20, len(steps))
        (line,) = axes.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"))
        line.set_label(log.parent.name)
        axes.plot(steps, values, color=line.get_color(), alpha=0.2, linewidth=0.8)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with new_file(target) as path:
        figure.savefig(path, format="png", dpi=120)
    plt.close(figure)


def _read_losses(log: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and their losses. Raises ConfigError for a file that is no run's log, or of a run without a step."""
    with log.open() as file:
        rows = list(csv.DictReader(file))
    try:
        steps, losses = (np.array([float(row[name]) for row in rows]) for name in ("step", "loss"))
    except (KeyError, TypeError, ValueError):
        rows = []
    if not rows:
        raise ConfigError(explain(str(log), expected="a run's log.csv", found="no steps in it", todo="Name another."))
    return steps, losses
