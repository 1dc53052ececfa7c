"""How soon the watchdog stops a robot whose loop was killed, stopped or hangs, and what it and a recording cost a tick.

    python benchmarks/control_safety.py --trials 50

A loop in a process of its own beats every millisecond. Killed: from the signal to when the stopper runs. Silent: from
the last beat to when it runs, so that ``--timeout-ms`` would be perfect. ``--fifo 80`` gives the watchdog SCHED_FIFO,
``--busy`` loads all cores meanwhile. A trial whose loop the scheduler held up for so long that it was stopped before
its time is repeated. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from edge_sdk.control.loop import SWITCH_INTERVAL_S
from edge_sdk.control.observers import InferenceRecord, TickRecord
from edge_sdk.control.policy import ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.control.realtime import RealtimeSettings
from edge_sdk.control.recording import Recorder
from edge_sdk.control.watchdog import Stopper, Watchdog
from machine import processor

FAULTS = ("kill -9", "SIGSTOP", "hangs with the interpreter's lock")
TICKS = 20_000
JOINTS, CHUNK_LENGTH = 14, 50


def loop(stop_file: Path, timeout_ms: float, fault: str, fifo: int | None, parent: Connection) -> None:
    """Beats until it is killed; tells the parent the time of its last beat where it knows which one that is."""
    stopper = Stopper(entry="edge_sdk.control.stoppers:write_file", arguments={"path": str(stop_file)})
    watchdog = Watchdog(stopper, timeout_ms, realtime=RealtimeSettings(fifo_priority=fifo))
    if watchdog.realtime.refused:
        raise SystemExit(watchdog.realtime.refused[0].detail)
    for _ in range(100):
        watchdog.beat()
        time.sleep(0.001)
    parent.send(time.monotonic_ns())
    if fault == "SIGSTOP":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault != "kill -9":
        ctypes.PyDLL(None).sleep(3600)
    while True:
        watchdog.beat()
        time.sleep(0.001)


def delay_ms(fault: str, timeout_ms: float, fifo: int | None) -> float:
    """Of one trial."""
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        stop_file = Path(folder) / "stopped"
        process = multiprocessing.get_context("spawn").Process(
            target=loop, args=(stop_file, timeout_ms, fault, fifo, theirs)
        )
        process.start()
        theirs.close()
        try:
            began_ns = ours.recv()
        except EOFError:  # the watchdog stopped a loop that the scheduler held up
            process.join()
            return delay_ms(fault, timeout_ms, fifo)
        if fault == "kill -9":
            time.sleep(0.01)
            began_ns = time.monotonic_ns()
            process.kill()
        while not stop_file.read_text():
            time.sleep(0.001)
        process.kill()
        process.join()
        return float(int(stop_file.read_text().split()[0]) - began_ns) / 1e6


def cost_us(call: Callable[[int], None], pause_s: float = 0.0) -> tuple[float, float]:
    """Median and 99th percentile of many calls, with a pause after each."""
    times_ns = []
    for index in range(TICKS):
        began_ns = time.perf_counter_ns()
        call(index)
        times_ns.append(time.perf_counter_ns() - began_ns)
        if pause_s:
            time.sleep(pause_s)
    return statistics.median(times_ns) / 1e3, statistics.quantiles(times_ns, n=100)[98] / 1e3


def beat_cost_us() -> tuple[float, float]:
    """Of a beat."""
    with tempfile.TemporaryDirectory() as folder:
        stopper = Stopper(entry="edge_sdk.control.stoppers:write_file", arguments={"path": f"{folder}/stopped"})
        with Watchdog(stopper, 1e6) as watchdog:
            return cost_us(lambda index: watchdog.beat())


def recording_cost_us() -> tuple[float, float]:
    """Of telling the recorder of a tick, at 1 kHz, with an inference every 20 ticks."""
    dims = tuple(ActionDim(name=f"joint{index}", unit="rad") for index in range(JOINTS))
    config = PolicyConfig(
        observations=(ObservationSpec(name="joints", shape=(JOINTS,)),),
        action=ActionSpec(dims=dims, rate_hz=1000),
        chunk_length=CHUNK_LENGTH,
        budget_ms=20,
    )
    values = np.random.default_rng(0).normal(size=(CHUNK_LENGTH, JOINTS)).astype(np.float32)
    times = {"observation_ns": 0, "done_ns": 0}

    def tell(index: int) -> None:
        recorder.tick(
            TickRecord(
                tick=index,
                planned_ns=0,
                woken_ns=0,
                timing="on_time",
                skipped=0,
                stage="policy",
                action=values[0],
                wanted=values[0],
                violations=0,
                inference=0,
                **times,
            )
        )
        if index % 20 == 0:
            recorder.inference(
                InferenceRecord(
                    inference=index // 20,
                    begins_episode=index == 0,
                    first_tick=index,
                    started_ns=0,
                    observed_ns=0,
                    observation={"joints": values[0]},
                    committed=values[:10],
                    chunk=values,
                    **times,
                )
            )

    with tempfile.TemporaryDirectory() as folder:
        with Recorder(Path(folder) / "run.mcap", config) as recorder:
            found = cost_us(tell, pause_s=0.001)
        report = recorder.close()
        print(
            f"\nRecorded {report.written}, dropped {report.dropped or 'none'}, {report.bytes / TICKS:.0f} bytes a tick"
        )
        return found


def spin() -> None:
    """Another process that computes."""
    while True:
        sum(range(10**6))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--timeout-ms", type=float, default=50.0)
    parser.add_argument("--fifo", type=int, help="the watchdog's SCHED_FIFO priority")
    parser.add_argument("--busy", action="store_true", help="with as many computing processes as there are cores")
    options = parser.parse_args()
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for other in others if options.busy else ():
        other.start()
    print(f"{processor()}{', all busy' if options.busy else ''}, {options.trials} trials, {options.timeout_ms} ms,")
    print(f"watchdog {'without SCHED_FIFO' if options.fifo is None else f'with SCHED_FIFO {options.fifo}'}\n")
    print("| the loop | median, ms | maximum, ms |\n|---|---|---|")
    for fault in FAULTS:
        delays = [delay_ms(fault, options.timeout_ms, options.fifo) for _ in range(options.trials)]
        print(f"| {fault} | {statistics.median(delays):.2f} | {max(delays):.2f} |", flush=True)
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # as in a run of the loop
    rows = {"a beat": beat_cost_us(), "recording a tick at 1 kHz": recording_cost_us()}
    print("\n| in the loop's thread | median, µs | p99, µs |\n|---|---|---|")
    for name, (median, high) in rows.items():
        print(f"| {name} | {median:.1f} | {high:.1f} |")


if __name__ == "__main__":
    main()
