"""Video as tests need it: files whose frames tell their number, and servers of streams on this machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH, RATE_HZ = 48, 64, 25.0
NUMBERS = 25
PACKET, PER_RTP = 188, 7
"""Bytes of a transport stream's packet, and how many of them fit one RTP packet (RFC 2250, section 2)."""


def picture(number: int) -> np.ndarray:
    """RGB; its red tells the number, below NUMBERS, and survives lossy compression."""
    image = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
    image[..., 0] = 20 + 8 * number
    return image


def number_of(image: np.ndarray) -> int:
    return round((float(image[..., 0].mean()) - 20) / 8)


def write_video(path: Path, frames: int, codec: str = "MJPG") -> Path:
    """A file of :func:`picture` s, by OpenCV."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), RATE_HZ, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(cv2.cvtColor(picture(number % NUMBERS), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


class StreamServer:
    """Serves a transport stream over and over: as it is, or by RTSP (RFC 2326) interleaved with RTP (RFC 2250)."""

    def __init__(self, stream: Path, *, rtsp: bool, seconds: float) -> None:
        """``seconds``: how long the stream lasts, and so is taken to be sent."""
        self._content, self._rtsp = stream.read_bytes(), rtsp
        self._pause_s = seconds * PACKET * PER_RTP / len(self._content)
        self._stop, self._client = threading.Event(), None
        self.listen(0)

    def listen(self, port: int) -> None:
        """Begins to serve."""
        self._listening = socket.create_server(("127.0.0.1", port), reuse_port=False)
        self.port = self._listening.getsockname()[1]
        self._stop.clear()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{'rtsp' if self._rtsp else 'tcp'}://127.0.0.1:{self.port}/camera"

    def stop(self) -> None:
        """As if the camera had lost its power: connections break and none is taken."""
        self._stop.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listening.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._listening.accept()
                with client:
                    client.settimeout(5)
                    if not self._rtsp or self._negotiate(client):
                        self._send(client)
            except OSError:
                continue

    def _negotiate(self, client: socket.socket) -> bool:
        """Answers requests until the client wants to see the stream."""
        sdp = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"
        answers = {
            "OPTIONS": ("Public: DESCRIBE, SETUP, PLAY, TEARDOWN", ""),
            "DESCRIBE": (f"Content-Type: application/sdp\r\nContent-Base: {self.url}/", sdp),
            "SETUP": ("Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1", ""),
            "PLAY": ("Session: 1", ""),
        }
        requests = client.makefile("r", newline="\r\n")
        while first := requests.readline():
            fields = dict(line.strip().split(": ", 1) for line in iter(requests.readline, "\r\n"))
            method = first.split()[0]
            header, body = answers[method]
            head = f"RTSP/1.0 200 OK\r\nCSeq: {fields['CSeq']}\r\n{header}\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall((head + body).encode())
            if method == "PLAY":
                return True
        return False

    def _send(self, client: socket.socket) -> None:
        size, number = PACKET * PER_RTP, 0
        while True:
            for start in range(0, len(self._content), size):
                if self._stop.wait(self._pause_s):
                    return
                part = self._content[start : start + size]
                clock = int(number * self._pause_s * 90_000) % (1 << 32)
                rtp = (
                    bytes([0x80, 33]) + (number % 65536).to_bytes(2, "big") + clock.to_bytes(4, "big") + bytes(4) + part
                )
                client.sendall(b"$\0" + len(rtp).to_bytes(2, "big") + rtp if self._rtsp else part)
                number += 1


@contextmanager
def stream_server(folder: Path, *, rtsp: bool) -> Iterator[StreamServer]:
    """A server of a stream that lasts four seconds."""
    frames = 100
    server = StreamServer(write_video(folder / "stream.ts", frames, "mp4v"), rtsp=rtsp, seconds=frames / RATE_HZ)
    try:
        yield server
    finally:
        if not server._stop.is_set():
            server.stop()
