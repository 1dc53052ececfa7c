"""Clients that ask, cancel, hang up and come back for minutes: no leak, no stuck place, no answer that another changed.

    python tests/soak.py build/demo/student --minutes 10

Half of the time eight threads use the Python API, half of it eight OpenAI clients ask a server process. The bundle gets
a tokenizer of letters, with which it can say JSON. Every answer is compared with the one that the same request got
before, alone. It prints Markdown and ends with code 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openai

import edge_sdk
from bundles import LETTERS, lettered
from edge_sdk import LanguageModel, Options
from edge_sdk.errors import BusyError
from edge_sdk.grammar import Grammar
from edge_sdk.scheduler import Scheduler
from servers import Server, serving

CLIENTS, SLOTS, WAITING = 8, 4, 2
"""More clients than may answer and wait, so that some are refused."""

SCHEMA = {
    "type": "object",
    "properties": {"fast": {"type": "boolean"}, "name": {"enum": ["on", "nose"]}},
    "required": ["fast", "name"],
    "additionalProperties": False,
}

SAMPLE_S = 0.25
"""From one look at the resident memory to the next."""

PADDING_BYTES = 16 << 10
"""Between the slots' states."""

GROWTH = 0.01
"""Of the resident memory over the last third of a part: less is flat."""


@dataclass(frozen=True)
class Ask:
    """A request, and what it is answered when nobody else asks."""

    prompt: str
    options: Options
    answer: str
    unstopped: str
    """The answer without stop texts: one that is cut off is a beginning of it."""

    @property
    def structured(self) -> bool:
        return self.options.grammar is not None


@dataclass
class Tally:
    """What came of one part."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """What must not have happened, in words."""
    resident: list[tuple[float, int]] = field(default_factory=list)
    """Time in seconds, and bytes."""

    def expect(self, holds: bool, what: object) -> None:
        if not holds:
            self.wrong.append(str(what))

    def last_third(self) -> tuple[float, float]:
        """Growth by the line through the last third's resident memory, and its range: both as parts of the mean."""
        times, sizes = np.array(self.resident).T
        late = times >= times[0] + (times[-1] - times[0]) * 2 / 3
        slope = np.polyfit(times[late], sizes[late], 1)[0]
        return float(slope * np.ptp(times[late]) / sizes[late].mean()), float(np.ptp(sizes[late]) / sizes[late].mean())

    def lines(self, limit: float) -> Iterator[str]:
        growth, spread = self.last_third()
        self.expect(growth <= limit, f"resident memory grew by {growth:.2%} in the last third")
        counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        minutes = (self.resident[-1][0] - self.resident[0][0]) / 60
        yield (
            f"| {self.name} | {minutes:.1f} | {counts} | {self.resident[-1][1] / 2**20:,.1f} | {growth:+.2%} "
            f"| {spread:.2%} | {len(self.wrong)} |"
        )


HEADER = (
    "| part | minutes | outcomes | resident at the end, MiB | growth in the last third | range there | wrong |\n"
    "|---|---|---|---|---|---|---|"
)


def make_asks(model: LanguageModel, count: int = 24) -> list[Ask]:
    """Requests of all kinds, answered alone; some begin alike, so that prefixes are remembered."""
    dice, asks = random.Random(0), list[Ask]()
    for index in range(count):
        said = "".join(dice.choices(LETTERS.strip(), k=70 if index % 3 == 0 else 20))
        options = Options(
            max_new_tokens=dice.choice([5, 20, 40]),
            temperature=dice.choice([0.0, 0.0, 1.0, 2.0]),
            seed=index,
            stop=dice.choice([(), ("na", "oo")]),
            top_p=dice.choice([1.0, 0.9]),
        )
        if index % 4 == 0:
            options = options.but(grammar=Grammar.json_schema(SCHEMA), stop=(), max_new_tokens=40)
        prompt = asks[0].prompt[:64] + said[:6] if index % 3 == 1 else said
        answer = model.generate(prompt, options).text
        asks.append(Ask(prompt, options, answer, model.generate(prompt, options, stop=()).text))
    return asks


def check_cut(ask: Ask, text: str, tally: Tally, whole: bool) -> None:
    """Of an answer that was cut off: a beginning of the whole one, and complete where it is structured."""
    if ask.structured and whole:
        tally.expect(json.loads(text).keys() == {"fast", "name"}, f"cut to {text!r}")
    elif not ask.structured:
        tally.expect(ask.unstopped.startswith(text), f"cut to {text!r}, alone {ask.unstopped!r}")


def use_api(model: LanguageModel, ask: Ask, dice: random.Random, tally: Tally) -> str:
    """One answer through the Python API."""
    kind = dice.choice(["whole", "whole", "whole", "fork", "cancelled", "abandoned", "deadline", "saved"])
    options = ask.options.but(deadline_ms=dice.uniform(0, 10)) if kind == "deadline" else ask.options
    with model.session() as session:
        if kind == "saved":
            session.append(model.codec.render(model.codec.messages(ask.prompt)))
            path = Path(tempfile.gettempdir()) / f"soak-{os.getpid()}-{threading.get_ident()}.state"
            session.save(path)
            with model.restore(path) as restored:
                text = restored.generate(None, options).text
            path.unlink()
        elif kind == "fork":
            session.prepare(ask.prompt)
            with session.fork() as fork:
                text = fork.generate(None, options).text
        else:
            stream = session.stream(ask.prompt, options)
            if kind == "cancelled":
                threading.Timer(dice.uniform(0, 0.01), stream.cancel).start()
            if kind == "abandoned":
                text = "".join(token.text for _, token in zip(range(dice.randrange(6)), stream))
                check_cut(ask, text, tally, whole=False)
                return kind
            completion = stream.result()
            text = completion.text
            if completion.finish_reason in ("cancelled", "deadline"):
                check_cut(ask, text, tally, whole=True)
                return kind
    tally.expect(text == ask.answer, f"{kind}: {text!r}, alone {ask.answer!r}")
    return kind


def use_server(server: Server, client: openai.OpenAI, ask: Ask, dice: random.Random, tally: Tally) -> str:
    """One request to the server."""
    kind = dice.choice(["whole", "whole", "whole", "streamed", "cancelled", "hung up", "deadline"])
    request = body(server, ask, kind, dice)
    if kind == "hung up":
        connection = server.connection()
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(request | request.pop("extra_body")), headers)
        time.sleep(dice.uniform(0, 0.02))
        connection.close()
        return kind
    answer = client.chat.completions.create(**request)
    if not request["stream"]:
        choice = answer.choices[0]
        if kind == "deadline" and choice.finish_reason == "length":
            check_cut(ask, choice.message.content, tally, whole=True)
        else:
            tally.expect(choice.message.content == ask.answer, f"{choice.message.content!r}, alone {ask.answer!r}")
        return kind
    patience, text = dice.randrange(8) if kind == "cancelled" else 10**6, ""
    with answer:
        for _, piece in zip(range(patience), answer):
            text += piece.choices[0].delta.content or ""
    if kind == "cancelled":
        check_cut(ask, text, tally, whole=False)
    else:
        tally.expect(text == ask.answer, f"streamed {text!r}, alone {ask.answer!r}")
    return kind


def body(server: Server, ask: Ask, kind: str, dice: random.Random) -> dict[str, Any]:
    """The request in OpenAI's form."""
    options = ask.options
    request: dict[str, Any] = {
        "model": server.name,
        "messages": [{"role": "user", "content": ask.prompt}],
        "max_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop": list(options.stop),
        "stream": kind in ("streamed", "cancelled"),
        "extra_body": {"deadline_ms": dice.uniform(0, 20)} if kind == "deadline" else {},
    }
    if ask.structured:
        schema = {"name": "state", "schema": SCHEMA, "strict": True}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    return request


@contextmanager
def watching(process: int, tally: Tally) -> Iterator[None]:
    """Notes a process's resident memory meanwhile."""
    stop = threading.Event()
    page = os.sysconf("SC_PAGE_SIZE")

    def watch() -> None:
        while not stop.is_set():
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            tally.resident.append((time.monotonic(), pages * page))
            stop.wait(SAMPLE_S)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def run_clients(
    tally: Tally, asks: list[Ask], until: Callable[[int], bool], use: Callable[[Ask, random.Random], str]
) -> None:
    """Eight clients, each asking until it is told that it asked enough."""

    def run(number: int) -> None:
        dice, asked = random.Random(number), 0
        while until(asked):
            asked += 1
            try:
                tally.outcomes[use(dice.choice(asks), dice)] += 1
            except (BusyError, openai.RateLimitError):
                tally.outcomes["refused"] += 1
                time.sleep(0.005)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(run, number) for number in range(CLIENTS)]:
            try:
                done.result()
            except Exception as error:  # whatever it is, a client should not have seen it
                tally.wrong.append(repr(error))


def soak_api(bundle: Path, asks: list[Ask], until: Callable[[int], bool]) -> Tally:
    """Threads on one model."""
    tally = Tally("Python API")
    model = edge_sdk.load(bundle, threads=1, slots=SLOTS, waiting=WAITING, prefix_cache_bytes=1 << 20)
    with watching(os.getpid(), tally):
        run_clients(tally, asks, until, lambda ask, dice: use_api(model, ask, dice, tally))
    steps, shared = model.steps, 0
    if isinstance(steps, Scheduler):
        left = (steps._places, steps._queue, steps._open, steps._requests)
        tally.expect(not any(left), f"left in the scheduler: {left}")
        shared = model.config.state_bytes(SLOTS, steps._shared.capacity)
    gc.collect()
    used = model.engine.budget.used_bytes  # type: ignore[attr-defined]
    tally.expect(used <= shared + PADDING_BYTES, f"states of {used:,} bytes are left, {shared:,} of them the slots'")
    tally.expect(model.generate(asks[0].prompt, asks[0].options).text == asks[0].answer, "the last answer is another")
    return tally


def soak_server(bundle: Path, asks: list[Ask], until: Callable[[int], bool], folder: Path) -> Tally:
    """OpenAI's clients and one server process."""
    tally = Tally("server")
    with serving(bundle, folder / "log", "--at-once", SLOTS, "--waiting", WAITING) as server:
        clients = threading.local()

        def use(ask: Ask, dice: random.Random) -> str:
            if not hasattr(clients, "own"):
                clients.own = server.client()
            return use_server(server, clients.own, ask, dice, tally)

        with watching(server.process.pid, tally):
            run_clients(tally, asks, until, use)
            for name in ("edge_requests_running", "edge_requests_waiting"):
                server.wait_for(name, 0)
        last = server.client().chat.completions.create(**body(server, asks[0], "whole", random.Random(0)))
        tally.expect(last.choices[0].message.content == asks[0].answer, "the last answer is another")
    failures = [record for record in server.records() if record["status"] not in (200, 429, 499)]
    tally.expect(not failures, failures[:1])
    tally.expect("Traceback" not in server.log.read_text(), "the server's log has a traceback")
    return tally


def soak(bundle: Path, part: Callable[[], Callable[[int], bool]], limit: float = GROWTH) -> tuple[list[str], list[str]]:
    """Both parts; ``part`` begins one and gives what tells a client whether to go on.

    Returns the Markdown, and what was wrong.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        changed = lettered(bundle, folder / "bundle")
        asks = make_asks(edge_sdk.load(changed, threads=1, prefix_cache_bytes=0))
        tallies = [soak_api(changed, asks, part()), soak_server(changed, asks, part(), folder)]
    lines = [HEADER, *(line for tally in tallies for line in tally.lines(limit))]
    return lines, [f"{tally.name}: {what}" for tally in tallies for what in tally.wrong]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()

    def part() -> Callable[[int], bool]:
        end = time.monotonic() + options.minutes * 60 / 2
        return lambda _: time.monotonic() < end

    lines, wrong = soak(options.bundle, part)
    print("\n".join(lines))
    print("\n".join(wrong[:20]), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
