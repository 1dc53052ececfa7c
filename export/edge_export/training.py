"""One training loop for training and distillation: resumable to the bit, interruptible, logged as CSV and plot."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edge_export.data import Batch, BatchSource, StepBatch
from edge_export.distributed import is_first, like, share, summed, whole, world
from edge_export.logs import add_events, plot_losses, write_log
from edge_export.terminal import console, interruptible
from edge_export.torch_layers import Moe
from edge_export.torch_model import HybridBody, HybridLM, MtpHead
from edge_sdk.errors import CheckpointError, EdgeError, explain
from edge_sdk.files import new_directory


class InterruptedRunError(EdgeError):
    """SIGINT came; the run was saved and goes on from there when it is started again."""

    exit_code = 130


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long and how fast a model learns."""

    steps: int
    batch_size: int = 128
    """Samples."""
    packing: bool = False
    """Samples of all lengths share rows, instead of batches of samples of similar lengths."""
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    expert_balance_rate: float = 1e-3
    """Step of the experts' correction bias towards equal load (auxiliary-loss-free, arXiv 2408.15664)."""
    average_decay: float = 0.0
    """The result is the exponential moving average of the weights with this decay; 0 takes the last ones."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products; weights, optimizer, norms, routers and the scan's states stay in float32."""
    recompute: bool = False
    """Layers are computed again in the backward pass, which saves their activations' memory for a third more time."""
    seed: int = 0
    save_every: int = 200

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine down to a hundredth."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


LossFunction = Callable[[Any, Any], Tensor]
"""Of a model and a batch: the sum over its targets over ``batch.tokens``. One that is a module is trained as well."""


Trained = TypeVar("Trained", bound=HybridBody | MtpHead)


class Trainer(Generic[Trained]):
    """A model, its optimizer and a folder that holds the run's log and its last checkpoint.

    ``given``: what else a run that goes on must have in common with the interrupted one, by name.
    """

    def __init__(
        self,
        model: Trained,
        batches: BatchSource,
        schedule: Schedule,
        folder: Path,
        loss: LossFunction,
        title: str,
        *,
        tensorboard: bool = False,
        given: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.model, self.batches, self.schedule, self.folder = model, batches, schedule, folder
        self.loss, self.title, self.step, self.tokens, self.seconds = loss, title, 0, 0, 0.0
        self.device, self.tensorboard, self.given = model.device, tensorboard, given
        self.parameters = dict(model.named_parameters())
        if isinstance(loss, nn.Module):
            self.parameters |= {f"loss.{name}": parameter for name, parameter in loss.named_parameters()}
        decayed = [parameter for parameter in self.parameters.values() if parameter.ndim >= 2]
        others = [parameter for parameter in self.parameters.values() if parameter.ndim < 2]
        groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.average: dict[str, Tensor] = {}
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), fused=True)
        self.rows: list[tuple[float, ...]] = []
        self._shown = 0

    def run(self) -> Trained:
        """Trains to the schedule's end, from the folder's checkpoint where there is one."""
        _keep_freed_memory()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        self.model.train()
        with recomputed(self.model) if self.schedule.recompute else nullcontext():
            self._run()
        if self.average:
            self.model.load_state_dict(self.average)
        if is_first():
            plot_losses([self.folder / "log.csv"], self.folder / "loss.png")
        self.model.eval()
        return self.model

    def _run(self) -> None:
        """All steps that are left, with a progress bar."""
        columns = (TextColumn(self.title), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, *times, console=console) as progress, interruptible() as interrupted:
            task = progress.add_task(self.title, total=self.schedule.steps, completed=self.step, loss="-")
            while self.step < self.schedule.steps:
                loss = self._train_step()
                progress.update(task, completed=self.step, loss=f"{loss:.4f}")
                if summed(torch.tensor(float(interrupted()), device=self.device)).item():  # one process's is all's
                    self._save()
                    raise InterruptedRunError(
                        f"Interrupted at step {self.step} of {self.schedule.steps}, saved in {self.folder}. "
                        "Run the same command again to go on."
                    )
                if self.step % self.schedule.save_every == 0:
                    self._save()
        self._save()

    def _train_step(self) -> float:
        started = time.perf_counter()
        batch = share(self.batches.at(self.step)).to(self.device)
        rate = self.schedule.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.precision == "bfloat16"):
            loss = self.loss(self.model, batch)
        (loss * world()).backward()  # the processes' gradients are averaged
        nn.utils.clip_grad_norm_(self.parameters.values(), self.schedule.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._balance_experts()
        self._update_average()
        value = summed(loss.detach()).item()
        if not math.isfinite(value):
            raise CheckpointError(
                explain(f"The loss at step {self.step}", expected="a number", found=value, todo="Lower the rate.")
            )
        self.step += 1
        self.tokens += batch.tokens
        self.seconds += time.perf_counter() - started
        self.rows.append((self.step, value, rate, self.tokens, self.seconds))
        return value

    def _balance_experts(self) -> None:
        for module in self.model.modules():
            if isinstance(module, Moe) and module.load is not None:
                load = summed(module.load.float())
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

    def _save(self) -> None:
        """Weights, optimizer moments and counters as safetensors and JSON, replaced as a whole; and the log."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        for name, parameter in self.parameters.items():
            if name.startswith("loss."):
                tensors[name] = parameter
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors = {name: whole(tensor.detach()).cpu().clone() for name, tensor in tensors.items()}
        if not is_first():
            return
        state = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        with new_directory(self.folder / "checkpoint") as new:
            save_file(tensors, new / "state.safetensors")
            (new / "state.json").write_text(json.dumps(state | self._facts()))
            (new / "log.json").write_text(json.dumps(self.rows))
        write_log(self.rows, self.folder)
        if self.tensorboard:
            add_events(self.rows[self._shown :], self.folder / "tensorboard")
            self._shown = len(self.rows)

    def _facts(self) -> dict[str, object]:
        """What a run that goes on must have in common with the interrupted one; of the data the samples' lengths."""
        return {
            "schedule": msgspec.to_builtins(self.schedule),
            "model": hashlib.sha256(msgspec.json.encode(self.model.config)).hexdigest(),
            "data": hashlib.sha256(np.asarray(self.batches.lengths, np.int64).tobytes()).hexdigest(),
            **self.given,
        }

    def _resume(self) -> None:
        folder = self.folder / "checkpoint"
        if not folder.exists():
            return
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        for name, ours in self._facts().items():
            if state.get(name, ours) != ours:
                raise CheckpointError(
                    explain(str(folder), expected=f"the same {name}", found="another", todo="Choose another --out.")
                )
        tensors = load_file(folder / "state.safetensors", device=str(self.device))
        ours = self.model.state_dict()
        self.model.load_state_dict({name: like(tensors[f"model.{name}"], part) for name, part in ours.items()})
        self.average = {name: like(tensor, ours[name]) for name, tensor in _below("average.", tensors).items()}
        for name, parameter in self.parameters.items():
            if name.startswith("loss."):
                parameter.data.copy_(like(tensors[name], parameter))
            self.optimizer.state[parameter] = {
                key: like(value, parameter) if value.ndim else value
                for key in ("step", "exp_avg", "exp_avg_sq")
                if (value := tensors.get(f"optimizer.{key}.{name}")) is not None
            }
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.rows = [tuple(row) for row in json.loads((folder / "log.json").read_text())]
        self._shown = len(self.rows) if (self.folder / "tensorboard").exists() else 0
        console.print(f"{self.title}: resuming at step {self.step} of {self.schedule.steps}")


@contextmanager
def recomputed(model: HybridBody | MtpHead) -> Iterator[None]:
    """Every layer keeps nothing but its input for the backward pass (gradient checkpointing, arXiv 1604.06174)."""
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in model.layers:
            del layer.forward  # the class's own is behind it


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _keep_freed_memory() -> None:
    """Tells glibc not to return large blocks to the system after every step; taking them again is slow (-18 % time)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold, largest = -3, -1, 2**30
        mallopt(mmap_threshold, largest)
        mallopt(trim_threshold, largest)


def data_loss(model: HybridBody, batch: StepBatch) -> Tensor:
    """What a batch's own targets say of a model."""
    return model.data_error(model.predict(batch), batch) / batch.tokens


def cross_entropy(model: HybridLM, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the targets."""
    logits = model(batch.input_ids, batch.documents)
    total = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="sum")
    return total / batch.tokens
