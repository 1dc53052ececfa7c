"""How fast a bundle is on this machine, beside what its memory allows."""

from __future__ import annotations

import time
from statistics import median

import msgspec
import numpy as np

from edge_sdk.backends import Engine, States
from edge_sdk.bundle import WEIGHTS, Bundle
from edge_sdk.errors import ConfigError, explain
from edge_sdk.language import prefill
from edge_sdk.machine import read_bandwidth, read_machine
from edge_sdk.model import MoeSpec
from edge_sdk.telemetry import read_memory, read_power, read_temperatures

WARM_UP_TOKENS = 4


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, of one sequence; medians over the rounds."""

    engine: str
    cpu: str
    threads: int
    prompt_tokens: int
    answer_tokens: int
    rounds: int
    time_to_first_token_ms: float
    """The prompt read, and the first token chosen."""
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    step_p50_ms: float
    step_p99_ms: float
    """Over the steps of all rounds."""
    resident_bytes: int
    peak_bytes: int
    memory_bytes_per_second: float
    """What so many threads read from memory, measured after the rounds; of the processor's memory, not of a GPU's."""
    step_bytes: float
    """Weights and states that a step reads: the weights' file, without the embedding and experts that are not chosen by
    their share of the parameters."""
    bound_tokens_per_second: float
    """Steps per second that would read no more than that, if nothing stayed in the processor's cache."""
    temperatures_celsius: dict[str, float]
    power_watts: dict[str, float]


def bench(
    bundle: Bundle, engine: Engine, *, threads: int, prompt: int = 512, answer: int = 128, rounds: int = 5
) -> Report:
    """Measures with random tokens. Raises ConfigError where the context has no room for so many."""
    if min(prompt, answer - 1, rounds) < 1 or prompt + answer > engine.max_length:
        todo = "Measure fewer tokens, an answer of at least 2."
        raise ConfigError(
            explain("The benchmark", expected=f"at most {engine.max_length} tokens", found=prompt + answer, todo=todo)
        )
    machine, config = read_machine(), bundle.manifest.model
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, prompt))
    _round(engine, ids, WARM_UP_TOKENS)
    firsts, steps = zip(*(_round(engine, ids, answer) for _ in range(rounds)))
    all_steps = np.concatenate(steps)
    memory, step_bytes = read_memory(), weight_bytes(bundle) + config.state_bytes(1, prompt + answer // 2)
    bandwidth = read_bandwidth(
        threads, min(512 << 20, machine.memory_free_bytes // (4 * threads))
    )  # last: it takes memory itself
    return Report(
        engine=engine.name,
        cpu=machine.cpu,
        threads=threads,
        prompt_tokens=prompt,
        answer_tokens=answer,
        rounds=rounds,
        time_to_first_token_ms=median(firsts) * 1e3,
        prefill_tokens_per_second=prompt / median(firsts),
        decode_tokens_per_second=median(len(taken) / sum(taken) for taken in steps),
        step_p50_ms=float(np.percentile(all_steps, 50)) * 1e3,
        step_p99_ms=float(np.percentile(all_steps, 99)) * 1e3,
        resident_bytes=memory.resident_bytes,
        peak_bytes=memory.peak_bytes,
        memory_bytes_per_second=bandwidth,
        step_bytes=step_bytes,
        bound_tokens_per_second=bandwidth / step_bytes,
        temperatures_celsius=read_temperatures(),
        power_watts=read_power(),
    )


def weight_bytes(bundle: Bundle) -> float:
    """Bytes of weights that a step of one sequence reads, estimated as if all parameters were stored alike."""
    config, everything = bundle.manifest.model, bundle.manifest.model.parameters()
    unread = 0 if config.tie_embeddings else config.vocab_size * config.hidden
    for spec in config.layers:
        if isinstance(spec, MoeSpec):
            unread += 2 * (spec.experts - spec.top_k) * (spec.latent or config.hidden) * spec.intermediate
    return bundle.manifest.files[WEIGHTS].bytes * (everything - unread) / everything


def describe(report: Report) -> str:
    """The report as lines to read."""
    sensors = [f"{name} {value:.0f} °C" for name, value in report.temperatures_celsius.items()]
    sensors += [f"{name} {value:.2f} W" for name, value in report.power_watts.items()]
    share = report.decode_tokens_per_second / report.bound_tokens_per_second
    lines = {
        "engine": f"{report.engine}, {report.threads} threads, {report.cpu}",
        "first token": f"{report.time_to_first_token_ms:,.1f} ms after a prompt of {report.prompt_tokens} tokens",
        "prefill": f"{report.prefill_tokens_per_second:,.0f} tokens/s",
        "decode": f"{report.decode_tokens_per_second:,.1f} tokens/s over {report.answer_tokens} tokens",
        "step": f"{report.step_p50_ms:.3f} ms median, {report.step_p99_ms:.3f} ms 99th percentile",
        "memory": f"{report.resident_bytes / 2**20:,.0f} MiB resident, {report.peak_bytes / 2**20:,.0f} MiB at most",
        "bound": f"{report.bound_tokens_per_second:,.1f} tokens/s: {report.step_bytes / 2**20:,.1f} MiB a step at "
        f"{report.memory_bytes_per_second / 1e9:.1f} GB/s; decode is at {share:.0%} of it",
        "sensors": ", ".join(sensors),
    }
    return "\n".join(f"{name:<12} {text}" for name, text in lines.items() if text)


def _round(engine: Engine, ids: np.ndarray, answer: int) -> tuple[float, list[float]]:
    """Seconds to the first token of ids (1, length), and of each later step."""
    started = time.perf_counter()
    states: States = engine.empty_states(1)
    tokens = prefill(engine, ids, states)
    first, steps = time.perf_counter() - started, []
    for _ in range(answer - 1):
        started = time.perf_counter()
        tokens = engine.next_tokens(tokens[:, None], states)
        steps.append(time.perf_counter() - started)
    return first, steps
