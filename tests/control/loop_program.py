"""A loop of nothing but heartbeats, which tests kill, stop and let hang: program STOP_FILE TIMEOUT_MS MODE."""

from __future__ import annotations

import ctypes
import os
import sys
import time

from edge_sdk.control.watchdog import Stopper, Watchdog
from edge_sdk.errors import WatchdogError

REFUSED = 7
"""Exit status when a beat was refused."""


def main(stop_file: str, timeout_ms: float, mode: str) -> None:
    """Modes: beat; hang, which keeps the interpreter's lock after 20 beats; fork, with a child that lives on; error."""
    stopper = Stopper(entry="edge_sdk.control.stoppers:write_file", arguments={"path": stop_file})
    with Watchdog(stopper, timeout_ms) as watchdog:
        if mode == "fork" and os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        for beat in range(10**9):
            try:
                watchdog.beat()
            except WatchdogError as error:
                print(error, flush=True)
                watchdog.close()
                sys.exit(REFUSED)
            if beat == 20:
                print(watchdog.process_id, time.monotonic_ns(), flush=True)
                if mode == "hang":
                    ctypes.PyDLL(None).sleep(60)
                if mode == "error":
                    raise ValueError("the policy divided by zero")
                if mode == "end":
                    break
            time.sleep(0.005)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
