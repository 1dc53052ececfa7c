"""What the acceptance check says of a float32 bundle whose weights were rounded, altered, or computed with in float16.

    python benchmarks/acceptance.py BUNDLE

Prints the error, which passes up to 0.1 (docs/deploy.md), of: the products' matrices rounded to float16, bfloat16, int8
and int4; the matrices, and what products and our operators read and make, rounded to float16 and to bfloat16, as
engines of that precision do it (docs/tensorrt.md) that accumulate in float32; and of each large weight tensor in its
turn, the signs of its second half of values turned.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from edge_sdk import Bundle
from edge_sdk.bundle import ENGINES, GRAPH, WEIGHTS
from edge_sdk.deploy.acceptance import add_acceptance, check

LARGE = 1024
"""Numbers in a tensor that is altered."""
BLOCK = 32
"""Numbers that share a scale."""

Change = Callable[[np.ndarray], np.ndarray]
"""Of a weight's (n) values."""


def blockwise(bits: int) -> Change:
    """Rounding to symmetric integers."""

    def change(values: np.ndarray) -> np.ndarray:
        padded = np.pad(values, (0, -len(values) % BLOCK)).reshape(-1, BLOCK)
        scale = np.maximum(np.abs(padded).max(-1, keepdims=True), 1e-30) / (2 ** (bits - 1) - 1)
        rounded: np.ndarray = np.round(padded / scale) * scale
        return rounded.reshape(-1)[: len(values)]

    return change


def turned(values: np.ndarray) -> np.ndarray:
    """The second half's signs turned."""
    return np.concatenate([values[: len(values) // 2], -values[len(values) // 2 :]])


ROUNDINGS: dict[str, Change] = {
    "float16": lambda values: values.astype(np.float16).astype(np.float32),
    "bfloat16": lambda values: values.astype(ml_dtypes.bfloat16).astype(np.float32),
    "int8": blockwise(8),
    "int4": blockwise(4),
}

PRECISIONS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
PRODUCTS = ("Gather", "Gemm", "MatMul", "MoE", "QLinear")


class Weight(NamedTuple):
    """A float tensor in the file of weights."""

    name: str
    offset: int
    size: int
    matrix: bool
    """Whether it is multiplied with or holds embeddings, which engines store in their precision."""


def tensors(bundle: Bundle) -> Iterator[Weight]:
    """Those of all graphs."""
    for file in (GRAPH, *bundle.manifest.graphs):
        graph = onnx.load(str(bundle.file(file)), load_external_data=False).graph
        multiplied = {name for node in graph.node if node.op_type in PRODUCTS for name in node.input}
        for tensor in graph.initializer:
            where = {item.key: item.value for item in tensor.external_data}
            if where and tensor.data_type == TensorProto.FLOAT:
                matrix = tensor.name in multiplied and len(tensor.dims) > 1
                yield Weight(tensor.name, int(where.get("offset", 0)), int(where["length"]) // 4, matrix)


def change_weights(bundle: Bundle, change: Change, only: str = "") -> None:
    """In place, one tensor or, where none is named, all matrices."""
    values = np.memmap(bundle.file(WEIGHTS), dtype=np.uint8, mode="r+")
    for name, offset, count, matrix in tensors(bundle):
        if name == only or (matrix and not only):
            part = values[offset : offset + 4 * count].view(np.float32)
            part[:] = change(part)
    values.flush()


def round_values(path: Path, kind: int) -> None:
    """Rounds what products and our operators read and make to a type of TensorProto; states stay as they are."""
    model = onnx.load(str(path), load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {one.name for one in inferred.value_info if one.type.tensor_type.elem_type == TensorProto.FLOAT}
    computed = [node for node in model.graph.node if node.op_type in PRODUCTS or node.domain == "edge"]
    rounded = floats & {name for node in computed for name in (*node.input, *node.output)}
    nodes = []
    for node in model.graph.node:
        named = [name for name in node.output if name in rounded]
        for index, name in enumerate(node.output):
            if name in rounded:
                node.output[index] = f"{name}.full"
        nodes.append(node)
        for name in named:
            nodes.append(helper.make_node("Cast", [f"{name}.full"], [f"{name}.half"], to=kind))
            nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    assert rounded
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))


def error(bundle: Bundle) -> float:
    """As the check finds it, of vectors that tolerate any."""
    return check(bundle, device="cpu", step_budget_ms=math.inf).error


def copied(bundle: Bundle, folder: Path) -> Bundle:
    """A copy, which may be changed: nothing compares its hashes."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle.path, folder, ignore=shutil.ignore_patterns(ENGINES))
    return Bundle(folder, bundle.manifest)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    given = Bundle.open(parser.parse_args().bundle)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        accepted = add_acceptance(copied(given, folder / "accepted").path, tolerance=math.inf)
        print(f"as exported: {error(accepted):.2g}")
        for name, change in ROUNDINGS.items():
            one = copied(accepted, folder / "one")
            change_weights(one, change)
            print(f"matrices in {name}: {error(one):.3g}", flush=True)
            if name in PRECISIONS:
                for graph in (GRAPH, *given.manifest.graphs):
                    round_values(one.file(graph), PRECISIONS[name])
                print(f"matrices and values in {name}: {error(one):.3g}", flush=True)
        found = {}
        for tensor in tensors(accepted):
            if tensor.size >= LARGE:
                one = copied(accepted, folder / "one")
                change_weights(one, turned, tensor.name)
                found[tensor.name] = error(one)
        for name, value in sorted(found.items(), key=lambda item: item[1]):
            print(f"{name} altered: {value:.3g}")


if __name__ == "__main__":
    main()
