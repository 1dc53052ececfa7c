"""Server processes for tests: the command line's, and one whose engine takes its time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from openai import OpenAI

SLOW = """
import sys, time
from edge_sdk.cli import main
from edge_sdk.backends.ort import OrtEngine

step = OrtEngine.step

def slow(self, *arguments):
    time.sleep({step_s})
    print("a step", file=sys.stderr, flush=True)
    return step(self, *arguments)

OrtEngine.step = slow
sys.exit(main(sys.argv[1:]))
"""


class Server:
    """A process that listens at a port of its own."""

    def __init__(self, process: subprocess.Popen[str], name: str, port: int, log: Path, token: str) -> None:
        self.process, self.name, self.port, self.log, self.token = process, name, port, log, token

    def client(self, token: str | None = None) -> OpenAI:
        base_url = f"http://127.0.0.1:{self.port}/v1"
        return OpenAI(base_url=base_url, api_key=token or self.token, max_retries=0, timeout=60)

    @property
    def header(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    def connection(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=60)

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = self.connection()
        try:
            connection.request("POST", path, body, {"content-type": "application/json", **self.header} | headers)
            response = connection.getresponse()
            return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """A metric's value, with its labels in the name; 0 where it is not there yet."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/metrics", headers=self.header)
        with urllib.request.urlopen(request) as response:
            text = response.read().decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def wait_for(self, name: str, value: float, timeout_s: float = 20) -> None:
        """Until a metric has a value."""
        end = time.monotonic() + timeout_s
        while (found := self.metric(name)) != value:
            assert time.monotonic() < end, f"{name} is {found}, not {value}"
            time.sleep(0.01)

    @property
    def steps(self) -> int:
        """How many a slow server has made."""
        return self.log.read_text().splitlines().count("a step")

    def records(self) -> list[dict[str, Any]]:
        """The log's lines about requests."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line.partition(": ")[2]) for line in lines if line.startswith('edge_sdk.server: {"path"')]


@contextmanager
def serving(bundle: Path, log: Path, *arguments: object, step_s: float = 0, token: str = "none") -> Iterator[Server]:
    """``edge-sdk serve``; each step takes at least ``step_s``."""
    program = ["-c", SLOW.format(step_s=step_s)] if step_s else ["-m", "edge_sdk.cli"]
    command = [sys.executable, *program, "serve", bundle, "--port", 0, "--threads", 1, *arguments]
    with log.open("w") as errors:
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving (\S+) at http://\S+:(\d+)/v1\n", line)
        assert found, line + log.read_text()
        server = Server(process, found[1], int(found[2]), log, token)
        for _ in range(500):
            try:
                connection = server.connection()
                connection.request("GET", "/health")
                connection.getresponse().read()
                break
            except OSError:
                time.sleep(0.02)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()
