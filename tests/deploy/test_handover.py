"""A switch under clients that ask all the time: none is refused, and none has its answer broken."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_sdk.deploy.store import Store
from links import free_port
from services import service, until, versioned
from small_bundles import install, runs, small_bundle

QUESTION = {"model": "edge", "messages": [{"role": "user", "content": "walk around left thrice"}], "temperature": 0}
TIMEOUT_S = 300


class Asking:
    """Two clients that ask without a pause: one opens a connection for each question, one keeps its own."""

    def __init__(self, port: int) -> None:
        self._port, self._stop = port, threading.Event()
        self.answers: list[str] = []
        self.errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._work, args=(ask,)) for ask in (self._anew, self._kept())]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def _work(self, ask: object) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(ask())  # type: ignore[operator]
            except Exception as error:
                self.errors.append(error)

    def _anew(self) -> str:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/v1/chat/completions",
            json.dumps(QUESTION).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return content(response.read())

    def _kept(self) -> object:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)

        def ask() -> str:
            connection.request(
                "POST", "/v1/chat/completions", json.dumps(QUESTION), {"content-type": "application/json"}
            )
            return content(connection.getresponse().read())  # it opens another when the server said that it closes

        return ask


def content(body: bytes) -> str:
    return str(json.loads(body)["choices"][0]["message"]["content"])


def children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def test_the_next_server_takes_over_without_a_gap(store: Store, scan_bundle: Path, tmp_path: Path) -> None:
    port, second = free_port(), versioned(scan_bundle, tmp_path / "two", "2")
    with service(store, port) as process:
        until(lambda: store.read().slots["a"].healthy)
        (first,) = children(process.pid)
        asking = Asking(port)
        with asking():
            until(lambda: len(asking.answers) > 5)
            install(store, second)
            until(lambda: store.read().slots["b"].healthy)
            until(lambda: first not in children(process.pid))
            before = len(asking.answers)
            until(lambda: len(asking.answers) > before + 5)
        assert asking.errors == []
        assert len(set(asking.answers)) == 1
        assert process.poll() is None
    assert runs(store) == "2"


def test_a_bundle_that_crashes_beside_the_one_that_answers_is_given_up(store: Store, tmp_path: Path) -> None:
    port = free_port()
    with service(store, port) as process:
        until(lambda: store.read().slots["a"].healthy)
        first = children(process.pid)
        asking = Asking(port)
        with asking():
            install(store, small_bundle(tmp_path / "broken", "2"))
            until(lambda: store.read().active == "a")
            before = len(asking.answers)
            until(lambda: len(asking.answers) > before + 5)
        assert asking.errors == []
        assert children(process.pid) == first
        assert process.poll() is None
    assert store.read().slots["b"].failed == "2 starts without a healthy service"


def test_where_memory_is_short_questions_wait(store: Store, scan_bundle: Path, tmp_path: Path) -> None:
    """One server after the other; in between the kernel keeps who comes."""
    store.configure(b'{"healthy_after_s": 0.5, "two_at_once": false}', None)
    port, second = free_port(), versioned(scan_bundle, tmp_path / "two", "2")
    with service(store, port) as process:
        until(lambda: store.read().slots["a"].healthy)
        asking, most = Asking(port), 0
        with asking():
            until(lambda: len(asking.answers) > 5)
            install(store, second)
            while not store.read().slots["b"].healthy:
                most = max(most, len(children(process.pid)))
            before = len(asking.answers)
            until(lambda: len(asking.answers) > before + 5)
        assert asking.errors == []
        assert most == 1
    assert runs(store) == "2"
