"""A board with a kernel, a systemd and disks of its own: Debian on a PC that qemu emulates, reached by SSH.

Everything is kept in build/board and nothing is installed into this machine's system. The emulation needs no KVM.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from builds import one_at_a_time
from edge_sdk.files import sha256
from links import free_port
from places import ROOT

FOLDER = ROOT / "build" / "board"
DEBIAN, TARGET = "bookworm", "3.11-x86_64-2.36"
PACKAGES = (
    *("linux-image-cloud-amd64", "initramfs-tools", "systemd", "systemd-sysv", "udev", "kmod", "openssh-server"),
    *("dbus", "dbus-user-session", "libpam-systemd", "python3", "iproute2"),
)
PYTHON = "/opt/edge/bin/python"
USER = "robot"
"""Who is not root there."""
START_S = 600
"""What it is given to start: half a minute to a minute on a core that has nothing else to do."""

FILES = {
    "etc/fstab": "LABEL=data /data ext4 defaults 0 2\n",
    "etc/hostname": "board\n",
    "etc/hosts": "127.0.0.1 localhost board\n",
    "etc/systemd/network/board.network": "[Match]\nType=ether\nKind=!veth\n"
    "[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n",
    "etc/systemd/journald.conf.d/board.conf": "[Journal]\nStorage=persistent\n",
}


def image() -> Path:
    """The folder that holds its disk, kernel and keys, with Edge SDK as it is in this checkout.

    Skips the test where it cannot be made. Debian's part, some minutes, is made once.
    """
    if platform.machine() != "x86_64" or os.geteuid() != 0:
        pytest.skip("needs root on an x86-64 machine")
    programs = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", "ssh")
    if missing := [name for name in programs if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (apt install qemu-system-x86 qemu-utils mmdebstrap)")
    debian, made, pack = FOLDER / "debian", FOLDER / "image", FOLDER / "pack"
    with one_at_a_time(FOLDER):
        if not debian.exists():
            _bootstrap(debian)
        note, sources = made / "sources", _sources()
        if note.exists() and note.read_text() == sources:
            return made
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        root = made / "root"
        _run("cp", "-a", debian, root)
        packing = [sys.executable, "-m", "edge_sdk.cli", "pack-wheels", "--target", TARGET, "--source", ROOT]
        _run(*packing, "--extras", "cpu,server,deploy", "--with", "pytest", "--out", pack)
        _run("cp", "-a", pack, root / "opt" / "pack")
        _run("chroot", root, "sh", "/opt/pack/install.sh", "/opt/edge")
        shutil.rmtree(root / "opt" / "pack")
        _configure(root, made)
        disk = made / "root.img"
        with disk.open("wb") as file:
            file.truncate(3 << 30)
        _run("mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", root, disk)
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy(next((root / "boot").glob(f"{name}-*")), made / name)
        shutil.rmtree(root)
        note.write_text(sources)
    return made


def _sources() -> str:
    """The hash of what the image is made from."""
    folders = (path for room in ("edge_sdk", "plugins") for path in (ROOT / room).rglob("*"))
    paths = (ROOT / "setup.py", Path(__file__), *folders)
    files = sorted(path for path in paths if path.suffix in (".py", ".cc", ".h", ".sh", ".txt") and path.is_file())
    return hashlib.sha256("".join(f"{path} {sha256(path)}\n" for path in files).encode()).hexdigest()


def _bootstrap(debian: Path) -> None:
    """Debian's part, by mmdebstrap, which checks its signatures."""
    partial = debian.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    leave_out = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", *leave_out, f"--include={','.join(PACKAGES)}"]
    done = subprocess.run([*command, DEBIAN, partial], capture_output=True, text=True, check=False, timeout=3600)
    if done.returncode:
        pytest.skip(f"Debian's packages cannot be had: {done.stderr.strip().splitlines()[-1:]}")
    partial.rename(debian)


def _configure(root: Path, made: Path) -> None:
    """Names, network, accounts and keys."""
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "data").mkdir()
    _run("chroot", root, "useradd", "--create-home", "--password", "*", "--shell", "/bin/bash", USER)
    _run("chroot", root, "systemctl", "enable", "systemd-networkd.service")
    _run("chroot", root, "systemctl", "mask", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_reap.service")
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", made / "user")
    for home, owner in ((root / "root", None), (root / "home" / USER, USER)):
        (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
        shutil.copy(made / "user.pub", home / ".ssh" / "authorized_keys")
        if owner:
            _run("chroot", root, "chown", "-R", f"{owner}:", f"/home/{owner}/.ssh")
    shutil.copy(root / "etc/ssh/ssh_host_ed25519_key.pub", made / "host.pub")


def _run(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-5000:]}"


class VirtualBoard:
    """One of them; its root disk is a layer over the image, and /data a disk that its maker gives it."""

    def __init__(self, folder: Path, made: Path, data: str, *, memory_mib: int = 1024) -> None:
        """``data``: what -blockdev takes for the node ``data``."""
        self.folder, self._made, self._data, self._memory_mib = folder, made, data, memory_mib
        self.port, self.service_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets = tempfile.TemporaryDirectory(prefix="board.")  # whose names must be short
        folder.mkdir(parents=True, exist_ok=True)
        layer = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", made / "root.img", folder / "root.qcow2"]
        _run(*layer)
        self.known_hosts, self.identity = folder / "known_hosts", made / "user"
        key = " ".join((made / "host.pub").read_text().split()[:2])
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {key}\n")

    def host(self, user: str = "root") -> str:
        """As `edge-sdk deploy` takes it."""
        return f"{user}@127.0.0.1:{self.port}"

    def power_on(self) -> None:
        """Starts it and waits until it can be logged in to."""
        forward = f"hostfwd=tcp:127.0.0.1:{self.port}-:22,hostfwd=tcp:127.0.0.1:{self.service_port}-:8000"
        command = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", 2, "-m", self._memory_mib),
            *("-nodefaults", "-display", "none", "-serial", f"file:{self.folder / 'console'}"),
            *("-kernel", self._made / "vmlinuz", "-initrd", self._made / "initrd.img"),
            *("-append", "root=LABEL=root rw console=ttyS0 quiet panic=-1"),
            *("-blockdev", f"driver=qcow2,node-name=root,file.driver=file,file.filename={self.folder / 'root.qcow2'}"),
            *("-blockdev", self._data),
            *(part for name in ("root", "data") for part in ("-device", f"virtio-blk-pci,drive={name},write-cache=on")),
            *("-nic", f"user,model=virtio-net-pci,restrict=on,{forward}", "-device", "virtio-rng-pci"),
        ]
        log = (self.folder / "qemu.log").open("ab")
        self._process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait()

    def wait(self) -> None:
        """Until it can be logged in to."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "qemu.log").read_text()
            with suppress(subprocess.TimeoutExpired):
                if self.run("true", check=False, timeout_s=60).returncode == 0:
                    return
            time.sleep(1)
        raise AssertionError(f"it does not start: {(self.folder / 'console').read_text(errors='replace')[-3000:]}")

    def cut_power(self) -> None:
        """At once: what was not on its way to a disk is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def run(
        self, command: str, user: str = "root", *, given: bytes = b"", check: bool = True, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """A shell's command on the board, with ``given`` as its input."""
        settings = {
            "BatchMode": "yes",
            "ConnectTimeout": 30,
            "ControlMaster": "auto",  # a login takes the emulated board seconds
            "ControlPath": f"{self._sockets.name}/%r",
            "ControlPersist": 60,
            "IdentityFile": self.identity,
            "ServerAliveInterval": 10,
            "UserKnownHostsFile": self.known_hosts,
        }
        options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        ssh = ["ssh", "-q", "-F", "none", *options, "-p", self.port, f"{user}@127.0.0.1"]
        ran = subprocess.run(
            [*map(str, ssh), command], input=given, capture_output=True, check=False, timeout=timeout_s
        )
        done = subprocess.CompletedProcess(command, ran.returncode, ran.stdout.decode(), ran.stderr.decode())
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done

    def says(self, command: str, user: str = "root") -> str:
        """What it prints."""
        return self.run(command, user).stdout.strip()

    def edge_sdk(self, *command: object, options: str = "", user: str = "root", timeout_s: float = 900) -> str:
        """What the workstation's `edge-sdk` says of this board; ``options`` as in a shell."""
        return edge_sdk(*command, *self.options(user), *shlex.split(options), timeout_s=timeout_s)

    def options(self, user: str = "root") -> Sequence[object]:
        """Of `edge-sdk deploy` and its like."""
        return (self.host(user), "--python", PYTHON, "--identity", self.identity, "--known-hosts", self.known_hosts)


def edge_sdk(*arguments: object, timeout_s: float = 900) -> str:
    """What the workstation's command says."""
    command = [sys.executable, "-m", "edge_sdk.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def data_disk(path: Path) -> str:
    """A new one with a file system, as VirtualBoard takes it."""
    with path.open("wb") as file:
        file.truncate(96 << 20)
    _run("mke2fs", "-q", "-t", "ext4", "-L", "data", path)
    return f"driver=raw,node-name=data,file.driver=file,file.filename={path}"


def run_tests(board: VirtualBoard, name: str) -> str:
    """Runs a file of this folder's tests there, without the fixtures of any conftest.py; returns what pytest says."""
    here = Path(__file__).parent
    files = [here / name, here / "links.py", here / "small_bundles.py", here.parent / "places.py"]
    packed = subprocess.run(
        ["tar", "c", *(part for path in files for part in ("-C", path.parent, path.name))],
        capture_output=True,
        check=True,
    )
    board.run("mkdir -p /root/tests && tar x -C /root/tests", given=packed.stdout)
    done = board.run(f"cd /root/tests && {PYTHON} -m pytest -rs -s {name}", check=False, timeout_s=3000)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout
