"""What a model will take on a board and how fast it will be, before anything is copied: ``edge-sdk plan``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import msgspec

from edge_sdk.boards import BOARDS, Board
from edge_sdk.errors import ConfigError, explain
from edge_sdk.model import CacheDType, Mamba2Spec, ModelConfig, ParallelSpec, StateDType
from edge_sdk.roofline import SHARES, decode_seconds, prefill_seconds
from edge_sdk.traffic import WeightStorage, activation_bytes, bundle_storage, input_widths, weight_bytes

FORMATS = ("bfloat16", "int8", "int4")
"""What bundles store weights as, the most precise first."""

CACHES: tuple[CacheDType, ...] = ("float16", "int8")

BLOCK = 512
"""Tokens that are fed at once, as in ``edge-export engine``."""

RUNTIME_BYTES = 600 * 10**6
"""An assumption of what the process, CUDA and TensorRT take besides; 0.14 to 0.2 GB of it were seen on a GPU alone
(docs/boards.md)."""

USEFUL_RATE = 10.0
"""Tokens per second that are thought worth a more precise format."""

DECODE_ERROR, PREFILL_ERROR = 0.10, 0.26
"""The largest error of a prediction over all published measurements (docs/boards.md)."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of a board. Raises ConfigError for numbers that no board could satisfy."""

    context: int = 4096
    """Positions of the caches, prompt and answer together."""
    prompt: int = 512
    """Tokens to read before the first is answered."""
    rate: float = USEFUL_RATE
    """Tokens per second that a format must reach to be preferred to a faster one."""
    mode: str | None = None
    """The power mode; None is the fastest."""

    def __post_init__(self) -> None:
        if not 1 <= self.prompt <= self.context:
            expected = f"between 1 and the context, {self.context}"
            raise ConfigError(explain("--prompt", expected=expected, found=self.prompt, todo="Change one of them."))
        if self.rate < 0:
            raise ConfigError(explain("--rate", expected="0 or more", found=self.rate, todo="Change it."))


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """A model in bytes, of one sequence."""

    parameters: int
    active_parameters: int
    weights: dict[str, int]
    """By format."""
    states: dict[str, int]
    """Those that do not grow with the context, by the type that the scans' are stored as."""
    cache: dict[str, int]
    """Keys and values of the whole context, by their type."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the model on the board."""

    weights: str
    cache: str
    weight_bytes: int
    state_bytes: int
    """Caches of the whole context included."""
    activation_bytes: int
    peak_bytes: int
    fits: bool
    decode_tokens_per_second: float | None
    """With full caches; None where the board's clocks are not known."""
    prefill_tokens_per_second: float | None
    """Of the prompt; None where the board's tensor cores' rate is not known."""
    decode_by_mode: dict[str, float]
    """The first of them in each of the board's modes with known clocks."""
    fitted: bool
    """Whether NVIDIA published measurements of such weights on this family of boards."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``edge-sdk plan`` says of one board."""

    board: str
    mode: str | None
    usable_bytes: int
    context: int
    prompt: int
    sizes: Sizes
    settings: tuple[Setting, ...]
    """The most precise first."""
    recommended: Setting | None
    """None where nothing fits."""
    longest_context: int | None
    """That the recommended setting, or else the smallest one, leaves memory for; None if not even one position."""
    notes: tuple[str, ...]


def make_plan(config: ModelConfig, board: Board, request: Request, stored: Sequence[WeightStorage] = ()) -> Plan:
    """A plan for one board. ``stored`` is what a bundle's weights are; else those that it could have are compared.

    Raises ConfigError for a context that the model was not made for, and an unknown power mode.
    """
    if request.context > config.max_length:
        expected = f"at most the model's {config.max_length}"
        raise ConfigError(explain("--context", expected=expected, found=request.context, todo="Ask for less."))
    if not stored:  # exports leave the drafting head out, unless speculation is asked for
        config = msgspec.structs.replace(config, mtp=None)
    formats = stored or storable(config)
    caches: tuple[CacheDType, ...] = (config.cache_dtype,) if stored else CACHES
    settings = tuple(
        _setting(with_cache(config, cache), weights, board, request) for weights in formats for cache in caches
    )
    recommended = recommend(settings, request.rate)
    closest = recommended or min(settings, key=lambda setting: setting.peak_bytes)
    return Plan(
        board=board.name,
        mode=board.mode(request.mode).name if board.modes else None,
        usable_bytes=board.usable_bytes,
        context=request.context,
        prompt=request.prompt,
        sizes=_sizes(config, formats, request.context),
        settings=settings,
        recommended=recommended,
        longest_context=_longest_context(config, closest, board),
        notes=tuple(_notes(config, board, settings)),
    )


def compare(config: ModelConfig, request: Request, stored: Sequence[WeightStorage] = ()) -> list[Plan]:
    """A plan for every board."""
    return [make_plan(config, board, request, stored) for board in BOARDS.values()]


def storable(config: ModelConfig) -> list[WeightStorage]:
    """The formats that a bundle may store this model in: blocks must fill the inputs of all products."""
    widths = {width for spec in config.layers for width in input_widths(spec, config.hidden)}
    formats = [bundle_storage(name) for name in FORMATS]
    return [stored for stored in formats if all(width % (stored.block_size or 1) == 0 for width in widths)]


def measured_storage(config: ModelConfig, name: str, file_bytes: int) -> WeightStorage:
    """The weights of a bundle from the size of their file: the mean of its products' bits, output projection included.

    A model that keeps leaves in different formats (``edge-export quantize``) has no other single description.
    """
    embedding = 32 if name == "float32" else 16
    empty, one = (
        weight_bytes(config, WeightStorage(name=name, bits=bits, embedding_bits=embedding)) for bits in (0.0, 1.0)
    )
    return WeightStorage(
        name=name.partition("-")[0], bits=(file_bytes - empty) / (one - empty), embedding_bits=embedding
    )


def recommend(settings: Sequence[Setting], rate: float) -> Setting | None:
    """Of those that fit, the most precise that is fast enough; else the fastest; where rates are unknown, the first."""
    fitting = [setting for setting in settings if setting.fits]
    for setting in fitting:
        if setting.decode_tokens_per_second is None or setting.decode_tokens_per_second >= rate:
            return setting
    return max(fitting, key=lambda setting: setting.decode_tokens_per_second or 0.0, default=None)


def with_cache(config: ModelConfig, cache: CacheDType) -> ModelConfig:
    """The model with keys and values stored so."""
    return msgspec.structs.replace(config, cache_dtype=cache)


def refusal(plan: Plan, plans: Sequence[Plan]) -> ConfigError:
    """Why a model does not fit, by how much, and what would: a shorter context, or other boards of ``plans``."""
    smallest = min(plan.settings, key=lambda setting: setting.peak_bytes)
    ways = []
    if plan.longest_context:
        ways.append(f"--context {plan.longest_context}, stored like that")
    boards = [other.board for other in plans if other.recommended is not None]
    if boards:
        ways.append(f"one of {', '.join(boards)}")
    ways.append("a smaller student: `edge-export prune`")
    missing = smallest.peak_bytes - plan.usable_bytes
    return ConfigError(
        explain(
            f"{plan.context} positions on {plan.board}",
            expected=f"at most {gigabytes(plan.usable_bytes)}",
            found=f"{gigabytes(smallest.peak_bytes)}, {gigabytes(missing)} too much, with weights in "
            f"{smallest.weights} and keys and values in {smallest.cache}",
            todo="What fits: " + "; ".join(ways) + ".",
        )
    )


def gigabytes(size: float) -> str:
    """In 10**9 bytes."""
    return f"{size / 1e9:,.2f} GB"


def _setting(config: ModelConfig, stored: WeightStorage, board: Board, request: Request) -> Setting:
    weights = math.ceil(weight_bytes(config, stored))
    states = config.state_bytes(batch=1, capacity=request.context)
    activations = math.ceil(activation_bytes(config, min(BLOCK, request.context)))
    peak = weights + states + activations + RUNTIME_BYTES
    by_mode = {mode.name: 1 / decode_seconds(config, stored, board, mode, request.context) for mode in board.modes}
    return Setting(
        weights=stored.name,
        cache=config.cache_dtype,
        weight_bytes=weights,
        state_bytes=states,
        activation_bytes=activations,
        peak_bytes=peak,
        fits=peak <= board.usable_bytes,
        decode_tokens_per_second=by_mode[board.mode(request.mode).name] if board.modes else None,
        prefill_tokens_per_second=_prompt_rate(config, stored, board, request),
        decode_by_mode=by_mode,
        fitted=stored.name in SHARES[board.family].fitted,
    )


def _prompt_rate(config: ModelConfig, stored: WeightStorage, board: Board, request: Request) -> float | None:
    """Tokens per second of a prompt that is fed in blocks."""
    if not board.modes:
        return None
    total, mode = 0.0, board.mode(request.mode)
    for start in range(0, request.prompt, BLOCK):
        tokens = min(BLOCK, request.prompt - start)
        seconds = prefill_seconds(config, stored, board, mode, tokens, start)
        if seconds is None:
            return None
        total += seconds
    return request.prompt / total


def _sizes(config: ModelConfig, formats: Sequence[WeightStorage], context: int) -> Sizes:
    def fixed(dtype: StateDType) -> int:
        return msgspec.structs.replace(config, state_dtype=dtype).state_bytes(batch=1, capacity=0)

    def cache(dtype: CacheDType) -> int:
        stored = with_cache(config, dtype)
        return stored.state_bytes(batch=1, capacity=context) - stored.state_bytes(batch=1, capacity=0)

    return Sizes(
        parameters=config.parameters(),
        active_parameters=config.active_parameters(),
        weights={stored.name: math.ceil(weight_bytes(config, stored)) for stored in formats},
        states={dtype: fixed(dtype) for dtype in get_args(StateDType)},
        cache={dtype: cache(dtype) for dtype in get_args(CacheDType)},
    )


def _longest_context(config: ModelConfig, setting: Setting, board: Board) -> int | None:
    """Positions that fit beside the weights, since all but the caches stays as it is."""
    stored = msgspec.structs.replace(config, cache_dtype=setting.cache)
    fixed = stored.state_bytes(batch=1, capacity=0)
    position = stored.state_bytes(batch=1, capacity=1) - fixed
    left = board.usable_bytes - (setting.peak_bytes - setting.state_bytes) - fixed
    if left < position:
        return None
    return min(config.max_length, left // position) if position else config.max_length


def _notes(config: ModelConfig, board: Board, settings: Sequence[Setting]) -> list[str]:
    notes = []
    if not board.modes:
        notes.append(f"No source for the memory's bandwidth of {board.name} was found, so nothing is said of rates.")
    elif board.family == "rtx":
        notes.append("Shares of bandwidth and rate are Orin's; no measurement of such a GPU was compared.")
    else:
        notes.append(
            "Rates are those that NVIDIA's TensorRT Edge-LLM would have: against its published ones the error was at "
            f"most {DECODE_ERROR:.0%} for decoding and {PREFILL_ERROR:.0%} for prompts. No engine of ours was measured "
            "on a board."
        )
        guessed = sorted({setting.weights for setting in settings if not setting.fitted})
        if guessed:
            notes.append(
                f"Of {' and '.join(guessed)} no rates were published; they are taken to reach the same shares."
            )
    if any(isinstance(spec, (Mamba2Spec, ParallelSpec)) for spec in config.layers):
        notes.append(
            "How fast prompts are read is not known of Mamba-2 layers: NVIDIA's published times are 1 to 22 times what "
            "is predicted."
        )
    return notes
