"""A bundle's own acceptance check: what its model answered where it was exported, and how near a board comes to that.

    acceptance.npz   kind          what the vectors are of: logits or actions
                     tolerance     the error that passes, see Vectors.error
      of logits      input_ids     (prompts, length) int64
                     pictures      (prompts, height, width, 3) uint8, of a model that sees: RGB, read before the tokens
                     logits        (prompts, steps, vocab) float32, of the last ``steps`` positions
      of actions     instructions  (episodes) text, empty where there is none
                     observation.<name>  (episodes, steps, *shape)
                     actions       (episodes, steps, chunk, action_dim) float32

The reference is ONNX Runtime on the exporting machine's CPU: a board's answers are compared with what this bundle's
files say elsewhere, which shows altered weights and engines that compute something else.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_sdk.bundle import MANIFEST, Bundle, FileEntry
from edge_sdk.deploy.policy_vectors import ActionVectors, Recorded
from edge_sdk.deploy.vectors import LogitVectors, Vectors
from edge_sdk.errors import DeployError, EdgeError, explain
from edge_sdk.files import new_file, sha256
from edge_sdk.model import ModelConfig

ACCEPTANCE = "acceptance.npz"
TOLERANCE = 0.1
"""Above what rounding all weights to bfloat16 makes, below what another weight tensor does (docs/deploy.md)."""


class Measured(msgspec.Struct, frozen=True):
    """What a check found."""

    error: float
    """The worst of all steps, see :meth:`edge_sdk.deploy.vectors.Vectors.error`."""
    step_ms: float
    """Median of a decoding step of one sequence, or of a policy's inference at the end of its longest episode."""


def add_acceptance(
    path: Path, *, tolerance: float = TOLERANCE, threads: int | None = None, recorded: Sequence[Recorded] = ()
) -> Bundle:
    """Runs a bundle on this machine's CPU and puts what it answered into it, in the place of older vectors.

    ``recorded``: what a policy is to see; without it, observations are drawn. The manifest is replaced in one step;
    signatures of the old one no longer fit. Raises BundleError and BackendError, and ConfigError for episodes that are
    not of the policy's schema.
    """
    bundle = Bundle.open(path)
    model = bundle.manifest.model
    vectors: Vectors = LogitVectors.draw(model) if model.policy is None else ActionVectors.draw(bundle, recorded)
    stored: dict[str, Any] = vectors.arrays() | {vectors.what: vectors.answers(bundle, "cpu", threads).values}
    with new_file(path / ACCEPTANCE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, kind=np.array(vectors.what), tolerance=np.array(tolerance), **stored)
    entry = FileEntry(sha256(path / ACCEPTANCE), (path / ACCEPTANCE).stat().st_size)
    manifest = msgspec.structs.replace(bundle.manifest, files={**bundle.manifest.files, ACCEPTANCE: entry})
    with new_file(path / MANIFEST) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return Bundle.open(path, verify_hashes=False)


def check(bundle: Bundle, *, device: str = "auto", step_budget_ms: float | None = None) -> Measured:
    """Compares what an engine of this machine answers with a bundle's vectors.

    ``step_budget_ms``: None is a policy's own budget, and of other models none. Raises DeployError where it is too far
    from them or too slow, or where there are no vectors that this version knows.
    """
    model = bundle.manifest.model
    vectors, tolerance = _read(bundle.file(ACCEPTANCE), model)
    answers = vectors.answers(bundle, device, None)
    measured = Measured(vectors.error(answers.values), answers.step_ms)
    if not measured.error <= tolerance:
        expected = f"{vectors.what} within {tolerance:g} of the exported ones"
        todo = "Its weights were altered after its vectors were made, or this board's engine is wrong: try elsewhere."
        raise _failed(answers.engine, expected, f"an error of {measured.error:.3g}", todo)
    if step_budget_ms is None and model.policy is not None:
        step_budget_ms = model.policy.schema.budget_ms
    if step_budget_ms is not None and measured.step_ms > step_budget_ms:
        todo = "Deploy a smaller model, or raise step_budget_ms."
        raise _failed(answers.engine, f"a step within {step_budget_ms:g} ms", f"{measured.step_ms:.3g} ms", todo)
    return measured


def _failed(engine: str, expected: str, found: str, todo: str) -> DeployError:
    return DeployError(explain(f"The acceptance check on {engine}", expected=expected, found=found, todo=todo))


def _read(path: Path, model: ModelConfig) -> tuple[Vectors, float]:
    """Vectors and tolerance. Raises DeployError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        kind = str(arrays["kind"])
        wanted = LogitVectors if model.policy is None else ActionVectors
        if kind != wanted.what:
            raise ValueError(kind)
        return wanted.read(arrays, model), float(arrays["tolerance"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        todo = "Use the Edge SDK version that exported the bundle."
        expected = "vectors that this version knows"
        raise DeployError(explain(ACCEPTANCE, expected=expected, found=error, todo=todo)) from None


def main() -> int:
    """``python -m edge_sdk.deploy.acceptance BUNDLE [MS]``: checks in a process of its own, which may crash alone."""
    try:
        budget = float(sys.argv[2]) if len(sys.argv) > 2 else None
        measured = check(Bundle.open(sys.argv[1], verify_hashes=False), step_budget_ms=budget)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    print(msgspec.json.encode(measured).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
