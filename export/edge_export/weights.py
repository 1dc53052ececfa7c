"""Writes a graph's weights from a checkpoint, one after another: no more of them is in memory than the largest."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from edge_export.checkpoint import Checkpoint
from edge_export.models import make_model
from edge_export.quantize import Convert
from edge_export.torch_layers import Constant, Experts, Rope
from edge_sdk.errors import CheckpointError, explain

if TYPE_CHECKING:
    import onnx_ir

Progress = Callable[[int, int], None]
"""Is told the bytes that are written and those that there are in all."""

PREFIX = "model."
"""What stands before the names of HybridLM's tensors in the graph."""

ALIGNMENT = 4096
"""Bytes: a tensor begins with a page of its own."""

SYNC_BYTES = 256 << 20
"""So much is written before it is made sure of and noted as done."""


def silent(done: int, total: int) -> None:
    """Tells nobody."""


Leaf = Callable[[], dict[str, Tensor]]
"""Reads and converts the tensors of a leaf of the model, by their names in the stored one."""


def stored_leaves(source: Checkpoint, make: Convert) -> dict[str, Leaf]:
    """Every leaf of a checkpoint's model by name: modules that are converted as a whole, and tensors by themselves."""
    with torch.device("meta"):
        model = make_model(source.config)
    leaves = (nn.Linear, nn.Embedding, Experts, Rope, Constant)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, leaves)}
    inside = {f"{name}.{part}" for name, module in modules.items() for part in module.state_dict()}
    alone = [name for name in model.state_dict() if name not in inside]
    stored: dict[str, Leaf] = {name: partial(_read_one, source, name) for name in (*alone, *source.vision_names)}
    for name, module in modules.items():
        stored[name] = partial(_convert_leaf, source, make, name, module)
    return stored


def _read_one(source: Checkpoint, name: str) -> dict[str, Tensor]:
    return {name: source.tensor(name)}


def _convert_leaf(source: Checkpoint, make: Convert, name: str, module: nn.Module) -> dict[str, Tensor]:
    leaf = copy.deepcopy(module)
    leaf.load_state_dict({part: source.tensor(f"{name}.{part}") for part in leaf.state_dict()}, assign=True)
    stored = make(name, leaf) or leaf
    return {f"{name}.{part}": value.detach() for part, value in (*stored.named_parameters(), *stored.named_buffers())}


@dataclass(frozen=True)
class Place:
    """Where the bytes of an initializer, one in all graphs that read it, stand in the file."""

    values: list[onnx_ir.Value]
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    length: int

    @property
    def name(self) -> str:
        """The initializer's name in the model."""
        return str(self.values[0].name).removeprefix(PREFIX)

    def write(self, file: BinaryIO, tensor: Tensor) -> None:
        """Writes a tensor in the initializer's type."""
        if tuple(tensor.shape) != self.shape:
            raise AssertionError(f"{self.name}: {tuple(tensor.shape)} instead of {self.shape}")
        file.seek(self.offset)
        file.write(tensor.to(self.dtype).contiguous().flatten().view(torch.uint8).numpy().data)

    def point(self, path: Path) -> None:
        """Makes the initializers stand for these bytes of ``path``."""
        import onnx_ir

        for value in self.values:
            dtype, shape = value.dtype, value.shape
            assert dtype is not None
            assert isinstance(shape, onnx_ir.Shape)
            value.const_value = onnx_ir.ExternalTensor(
                path.name, self.offset, self.length, dtype, shape=shape, name=str(value.name), base_dir=path.parent
            )


@dataclass(frozen=True)
class Layout:
    """Where each leaf's initializers stand in the file, leaf by leaf, one behind the other."""

    leaves: dict[str, list[Place]]

    def _all(self) -> list[Place]:
        return [place for places in self.leaves.values() for place in places]

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return max((place.offset + place.length for place in self._all()), default=0)

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in it."""
        return sum(place.length for place in self._all())

    def point(self, path: Path) -> None:
        """Makes all initializers stand for bytes of ``path``."""
        for place in self._all():
            place.point(path)


def write_weights(layout: Layout, leaves: Mapping[str, Leaf], path: Path, progress: Progress = silent) -> None:
    """Writes what the initializers are to hold to ``path``; of one name, once.

    What ``<path>.done`` notes as written by an interrupted call is not written again.
    """
    note = path.with_name(path.name + ".done")
    done = set(note.read_text(encoding="utf-8").splitlines()) if note.exists() and path.exists() else set()
    with path.open("r+b" if done else "wb") as file, note.open("a" if done else "w", encoding="utf-8") as notes:
        file.truncate(layout.file_bytes)
        unsure: list[str] = []
        unsure_bytes = written = 0
        for name, of_leaf in layout.leaves.items():
            if name not in done:
                _write_leaf(file, of_leaf, leaves[name]())
                unsure.append(name)
                unsure_bytes += sum(place.length for place in of_leaf)
            written += sum(place.length for place in of_leaf)
            if unsure_bytes >= SYNC_BYTES:
                _make_sure(file, notes, unsure)
                unsure, unsure_bytes = [], 0
            progress(written, layout.weight_bytes)
        _make_sure(file, notes, unsure)
    note.unlink()


def _write_leaf(file: BinaryIO, places: Sequence[Place], tensors: Mapping[str, Tensor]) -> None:
    for place in places:
        place.write(file, tensors[place.name])


def _make_sure(file: BinaryIO, notes: TextIO, names: list[str]) -> None:
    """The data is on the disk before the note that says so."""
    file.flush()
    os.fsync(file.fileno())
    notes.writelines(f"{name}\n" for name in names)
    notes.flush()
    os.fsync(notes.fileno())


def lay_out(graphs: Sequence[onnx_ir.Model], leaves: Collection[str]) -> Layout:
    """Gives the initializers that have no values yet their places. Raises CheckpointError for one of no leaf."""
    places: dict[str, list[Place]] = {}
    offset = 0
    for values in _without_bytes(graphs).values():
        fake = values[0].const_value.raw
        leaf = leaf_of(str(values[0].name).removeprefix(PREFIX), leaves)
        if not leaf:
            raise CheckpointError(
                explain(f"The graph's {values[0].name}", expected="a weight", found="none", todo="Report this.")
            )
        length = fake.numel() * fake.element_size()
        places.setdefault(leaf, []).append(Place(values, fake.dtype, tuple(map(int, fake.shape)), offset, length))
        offset = -(-(offset + length) // ALIGNMENT) * ALIGNMENT
    return Layout(places)


def leaf_of(name: str, leaves: Collection[str]) -> str:
    """The leaf that one of a model's tensors belongs to; empty if none."""
    while name and name not in leaves:
        name = name.rpartition(".")[0]
    return name


def _without_bytes(graphs: Sequence[onnx_ir.Model]) -> dict[str, list[Any]]:
    """The graphs' weights by name; graphs of one model call a weight alike."""
    found: dict[str, list[Any]] = {}
    for graph in graphs:
        for value in graph.graph.initializers.values():
            if isinstance(getattr(value.const_value, "raw", None), FakeTensor):
                found.setdefault(str(value.name), []).append(value)
    return found
