"""One training loop for training and distillation: resumable to the bit, interruptible, logged as CSV and plot."""

from __future__ import annotations

import csv
import ctypes
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_export.data import Batch, Batches
from edge_export.terminal import console, interruptible
from edge_export.torch_model import HybridLM, Moe
from edge_sdk.errors import CheckpointError, EdgeError, explain
from edge_sdk.files import new_directory, new_file

COLUMNS = ("step", "loss", "learning_rate", "tokens", "seconds")


class InterruptedRunError(EdgeError):
    """SIGINT came; the run was saved and goes on from there when it is started again."""

    exit_code = 130


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long and how fast a model learns."""

    steps: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    expert_balance_rate: float = 1e-3
    """Step of the experts' correction bias towards equal load (auxiliary-loss-free, arXiv 2408.15664)."""
    average_decay: float = 0.0
    """The result is the exponential moving average of the weights with this decay; 0 takes the last ones."""
    seed: int = 0
    save_every: int = 200

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine down to a hundredth."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


LossFunction = Callable[[HybridLM, Batch], Tensor]


class Trainer:
    """A model, its optimizer and a folder that holds the run's log and its last checkpoint."""

    def __init__(
        self, model: HybridLM, batches: Batches, schedule: Schedule, folder: Path, loss: LossFunction, title: str
    ) -> None:
        self.model, self.batches, self.schedule, self.folder = model, batches, schedule, folder
        self.loss, self.title, self.step, self.tokens, self.seconds = loss, title, 0, 0, 0.0
        decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
        others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
        groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.average: dict[str, Tensor] = {}
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), fused=True)
        self.rows: list[tuple[float, ...]] = []

    def run(self) -> HybridLM:
        """Trains to the schedule's end, from the folder's checkpoint where there is one."""
        _keep_freed_memory()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        self.model.train()
        columns = (TextColumn(self.title), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, *times, console=console) as progress, interruptible() as interrupted:
            task = progress.add_task(self.title, total=self.schedule.steps, completed=self.step, loss="-")
            while self.step < self.schedule.steps:
                loss = self._train_step()
                progress.update(task, completed=self.step, loss=f"{loss:.4f}")
                if interrupted():
                    self._save()
                    raise InterruptedRunError(
                        f"Interrupted at step {self.step} of {self.schedule.steps}, saved in {self.folder}. "
                        "Run the same command again to go on."
                    )
                if self.step % self.schedule.save_every == 0:
                    self._save()
        self._save()
        if self.average:
            self.model.load_state_dict(self.average)
        plot_losses([self.folder / "log.csv"], self.folder / "loss.png")
        return self.model.eval()

    def _train_step(self) -> float:
        started = time.perf_counter()
        batch = self.batches.at(self.step)
        rate = self.schedule.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss(self.model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._balance_experts()
        self._update_average()
        value = loss.item()
        if not math.isfinite(value):
            raise CheckpointError(
                explain(f"The loss at step {self.step}", expected="a number", found=value, todo="Lower the rate.")
            )
        self.step += 1
        self.tokens += int((batch.targets >= 0).sum())
        self.seconds += time.perf_counter() - started
        self.rows.append((self.step, value, rate, self.tokens, self.seconds))
        return value

    def _balance_experts(self) -> None:
        for module in self.model.modules():
            if isinstance(module, Moe) and module.load is not None:
                load = module.load.float()
                module.gate.e_score_correction_bias.add_(
                    (load.mean() - load).sign() * self.schedule.expert_balance_rate
                )

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self.schedule.average_decay:
            return
        keep = min(self.schedule.average_decay, (1 + self.step) / (10 + self.step))  # the first weights are forgotten
        for name, tensor in self.model.state_dict().items():
            if name in self.average:
                self.average[name].lerp_(tensor, 1 - keep)
            else:
                self.average[name] = tensor.clone()

    def _names(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters())

    def _save(self) -> None:
        """Weights, optimizer moments and counters as safetensors and JSON, replaced as a whole; and the log."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        for name, parameter in self._names().items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        state = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        with new_directory(self.folder / "checkpoint") as new:
            save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, new / "state.safetensors")
            (new / "state.json").write_text(json.dumps(state | {"schedule": msgspec.to_builtins(self.schedule)}))
            (new / "log.json").write_text(json.dumps(self.rows))
        with new_file(self.folder / "log.csv") as path, path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(
                (step, f"{loss:.6f}", f"{rate:.3g}", tokens, f"{seconds:.2f}")
                for step, loss, rate, tokens, seconds in self.rows
            )

    def _resume(self) -> None:
        folder = self.folder / "checkpoint"
        if not folder.exists():
            return
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        if state["schedule"] != msgspec.to_builtins(self.schedule):
            raise CheckpointError(
                explain(
                    str(folder), expected="the same schedule", found=state["schedule"], todo="Choose another --out."
                )
            )
        tensors = load_file(folder / "state.safetensors")
        self.model.load_state_dict(_below("model.", tensors))
        self.average = _below("average.", tensors)
        for name, parameter in self._names().items():
            self.optimizer.state[parameter] = {
                key: tensors[f"optimizer.{key}.{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"optimizer.{key}.{name}" in tensors
            }
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.rows = [tuple(row) for row in json.loads((folder / "log.json").read_text())]
        console.print(f"{self.title}: resuming at step {self.step} of {self.schedule.steps}")


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _keep_freed_memory() -> None:
    """Tells glibc not to return large blocks to the system after every step; taking them again is slow (-18 % time)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold, largest = -3, -1, 2**30
        mallopt(mmap_threshold, largest)
        mallopt(trim_threshold, largest)


def cross_entropy(model: HybridLM, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the completions' tokens."""
    logits = model(batch.input_ids)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())


def plot_losses(logs: list[Path], target: Path) -> None:
    """The losses of one or several log.csv files over steps, as a PNG: each step faintly, the mean of 20 clearly."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for log in logs:
        with log.open() as file:
            rows = list(csv.DictReader(file))
        steps, values = (np.array([float(row[name]) for row in rows]) for name in ("step", "loss"))
        width = min(20, len(rows))
        (line,) = axes.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"))
        line.set_label(log.parent.name)
        axes.plot(steps, values, color=line.get_color(), alpha=0.2, linewidth=0.8)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with new_file(target) as path:
        figure.savefig(path, format="png", dpi=120)
    plt.close(figure)
