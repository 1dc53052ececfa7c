"""A bundle's own acceptance check: what its model answered where it was exported, and how near a board comes to that.

    acceptance.npz   kind        what the vectors are of; "logits" so far
                     input_ids   (prompts, length) int64
                     logits      (prompts, steps, vocab) float32: of the last ``steps`` positions
                     tolerance   the error that passes, see :func:`error_of`

All but the last ``steps`` - 1 tokens of a prompt are fed at once and the others one by one, so that prefill and
decoding are both compared. The reference is ONNX Runtime on the exporting machine's CPU: a board's answers are compared
with what this bundle's files say elsewhere, which shows altered weights and engines that compute something else.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from edge_sdk.backends import Engine, choose_engine
from edge_sdk.bundle import MANIFEST, Bundle, FileEntry
from edge_sdk.errors import DeployError, EdgeError, explain
from edge_sdk.files import new_file, sha256

ACCEPTANCE = "acceptance.npz"
LOGITS = "logits"
PROMPTS, PROMPT_TOKENS, STEPS = 4, 24, 9
TOLERANCE = 0.1
"""Above what rounding all weights to bfloat16 makes, below what another weight tensor does (docs/deploy.md)."""


class Measured(msgspec.Struct, frozen=True):
    """What a check found."""

    error: float
    """The worst of all steps, see :func:`error_of`."""
    step_ms: float
    """Median of a decoding step of one sequence."""


def error_of(found: np.ndarray, expected: np.ndarray) -> float:
    """The worst step's error: root mean square over that of the expected logits' spread, for (steps, vocab) each.

    Logits are compared around their mean, since softmax knows no constant.
    """
    centred = expected - expected.mean(-1, keepdims=True)
    apart = found - found.mean(-1, keepdims=True) - centred
    spread = np.sqrt(np.square(centred).mean(-1))
    errors = np.sqrt(np.square(apart).mean(-1)) / np.maximum(spread, np.finfo(np.float32).tiny)
    return float(np.nan_to_num(errors, nan=np.inf).max())


def add_acceptance(path: Path, *, tolerance: float = TOLERANCE, threads: int | None = None) -> Bundle:
    """Runs a bundle on this machine's CPU and puts what it answered into it, in the place of older vectors.

    The manifest is replaced in one step; signatures of the old one no longer fit. Raises BundleError and BackendError,
    and DeployError for a model that takes more than tokens.
    """
    bundle = Bundle.open(path)
    config = bundle.manifest.model
    if config.vision is not None or config.policy is not None:
        found, todo = "one that sees" if config.policy is None else "a policy", "Leave the vectors out."
        raise DeployError(explain("Acceptance vectors", expected="a model of text", found=found, todo=todo))
    length = min(PROMPT_TOKENS, config.max_length)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (PROMPTS, length))
    engine = choose_engine(bundle, device="cpu", threads=threads)
    logits = np.stack([_logits(engine, prompt, min(STEPS, length))[0] for prompt in ids])
    with new_file(path / ACCEPTANCE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, kind=LOGITS, input_ids=ids, logits=logits, tolerance=tolerance)
    entry = FileEntry(sha256(path / ACCEPTANCE), (path / ACCEPTANCE).stat().st_size)
    manifest = msgspec.structs.replace(bundle.manifest, files={**bundle.manifest.files, ACCEPTANCE: entry})
    with new_file(path / MANIFEST) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return Bundle.open(path, verify_hashes=False)


def check(bundle: Bundle, *, device: str = "auto", step_budget_ms: float | None = None) -> Measured:
    """Compares what an engine of this machine answers with a bundle's vectors.

    Raises DeployError where it is too far from them or too slow, or where there are no vectors that this version knows.
    """
    ids, expected, tolerance = _read(bundle)
    engine = choose_engine(bundle, device=device)
    steps = expected.shape[1]
    errors, seconds = [], list[float]()
    for prompt, logits in zip(ids, expected):
        found, took = _logits(engine, prompt, steps)
        errors.append(error_of(found, logits))
        seconds += took
    measured = Measured(max(errors), median(seconds) * 1e3)
    if not measured.error <= tolerance:
        todo = (
            "Its weights were altered after its vectors were made, or this board's engine is wrong: compare elsewhere."
        )
        raise DeployError(
            explain(
                f"The acceptance check on {engine.name}",
                expected=f"logits within {tolerance:g} of the exported ones",
                found=f"an error of {measured.error:.3g}",
                todo=todo,
            )
        )
    if step_budget_ms is not None and measured.step_ms > step_budget_ms:
        todo = "Deploy a smaller model, or raise step_budget_ms."
        expected_ms, found_ms = f"a step within {step_budget_ms:g} ms", f"{measured.step_ms:.3g} ms"
        raise DeployError(
            explain(f"The acceptance check on {engine.name}", expected=expected_ms, found=found_ms, todo=todo)
        )
    return measured


def _logits(engine: Engine, prompt: np.ndarray, steps: int) -> tuple[np.ndarray, list[float]]:
    """Logits (steps, vocab) of a prompt's (length) last positions, and the seconds of each single step."""
    states = engine.empty_states(1)
    first = len(prompt) - steps + 1
    logits, seconds = [engine.step(prompt[None, :first], states)[0, -1].copy()], []
    for token in prompt[first:]:
        started = time.perf_counter()
        logits.append(engine.step(token.reshape(1, 1), states)[0, -1].copy())
        seconds.append(time.perf_counter() - started)
    engine.release(states)
    return np.stack(logits), seconds


def _read(bundle: Bundle) -> tuple[np.ndarray, np.ndarray, float]:
    """Prompts (prompts, length), logits (prompts, steps, vocab) and tolerance. Raises DeployError."""
    try:
        with np.load(bundle.file(ACCEPTANCE), allow_pickle=False) as arrays:
            kind = str(arrays["kind"])
            ids, logits, tolerance = arrays["input_ids"], arrays["logits"], float(arrays["tolerance"])
    except (OSError, KeyError, ValueError) as error:
        raise _unknown(error) from None
    config = bundle.manifest.model
    prompts, length = ids.shape if ids.ndim == 2 else (0, 0)
    fits = logits.ndim == 3 and logits.shape[::2] == (prompts, config.vocab_size) and 1 < logits.shape[1] <= length
    if kind != LOGITS or not fits or ids.dtype != np.int64 or (ids < 0).any() or (ids >= config.vocab_size).any():
        raise _unknown(f"{kind} of {ids.shape} and {logits.shape}")
    return ids, logits, tolerance


def _unknown(found: object) -> DeployError:
    todo = "Use the Edge SDK version that exported the bundle."
    return DeployError(explain(ACCEPTANCE, expected="vectors that this version knows", found=found, todo=todo))


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
