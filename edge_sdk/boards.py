"""The boards and GPUs that models run on: one table, each figure with where it is from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

from edge_sdk.errors import ConfigError, explain
from edge_sdk.traffic import Precision

GIB = 1 << 30
MIB = 1 << 20

Family = Literal["orin", "thor", "rtx"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

SOURCES = {
    "nano": "NVIDIA Jetson Orin Nano Series Data Sheet DS-11105-001, "
    "https://connecttech.com/ftp/pdf/nvidia_jetson_orin_datasheet.pdf",
    "nx": "NVIDIA Jetson Orin NX Series Data Sheet DS-10712-001 v1.7, "
    "https://developer.nvidia.com/downloads/jetson-orin-nx-module-series-data-sheet",
    "agx": "NVIDIA Jetson AGX Orin Series Data Sheet DS-10662-001 v1.8, "
    "https://static.generation-robots.com/media/Jetson-AGX-Orin-Data-Sheet.pdf",
    "super": "JetPack 6.2 Brings Super Mode, https://developer.nvidia.com/blog/"
    "nvidia-jetpack-6-2-brings-super-mode-to-nvidia-jetson-orin-nano-and-jetson-orin-nx-modules/",
    "thor": "Introducing NVIDIA Jetson Thor, "
    "https://developer.nvidia.com/blog/introducing-nvidia-jetson-thor-the-ultimate-platform-for-physical-ai/",
    "t4000": "NVIDIA Jetson T4000 and JetPack 7.1, https://developer.nvidia.com/blog/"
    "accelerate-ai-inference-for-edge-and-robotics-with-nvidia-jetson-t4000-and-nvidia-jetpack-7-1/",
    "modes": "Jetson Linux Developer Guide r36.4.4, Platform Power and Performance, https://docs.nvidia.com/jetson/"
    "archives/r36.4.4/DeveloperGuide/SD/PlatformPowerAndPerformance/"
    "JetsonOrinNanoSeriesJetsonOrinNxSeriesAndJetsonAgxOrinSeries.html",
    "tegrastats": "the total that `tegrastats` prints on that module, as seen in public logs of it",
    "jetpack6": "https://developer.nvidia.com/embedded/jetpack-sdk-62",
    "jetpack7": "https://developer.nvidia.com/embedded/jetpack/downloads/archive-7.2",
    "4090": "https://waredb.com/processor/nvidia-geforce-rtx-4090 (not NVIDIA's own page)",
    "5090": "https://forums.developer.nvidia.com/t/rtx-5090-peak-bf16-tensor-tflops/350543 for the rate, "
    "https://pocketmags.com/linux-format-magazine/may-2025/articles/nvidia-geforce-rtx-5090 for the rest",
}
"""Where figures are from, by the short names that ``Board.sources`` uses."""

SYSTEM_BYTES = 1 * GIB
"""What Linux and its services are taken to use without a desktop. 0.7 GB were reported of an Orin NX
(https://wiki.seeedstudio.com, "YOLOv8 custom classification"), and 1.5 GB with a desktop."""

SHOWN_SHARE = 0.93
"""Of a Jetson's memory that Linux is taken to see, where no total was found; it is 0.93 to 0.96 where one was."""


class PowerMode(msgspec.Struct, frozen=True, kw_only=True):
    """A power mode whose clocks are known."""

    name: str
    gpu_mhz: float
    bandwidth_gb_s: float
    """Of the memory, in 10**9 bytes per second."""


class Software(msgspec.Struct, frozen=True, kw_only=True):
    """What a JetPack brings."""

    jetpack: str
    cuda: str
    tensorrt: str


JETPACK_6 = Software(jetpack="6.2", cuda="12.6", tensorrt="10.3")
JETPACK_7 = Software(jetpack="7.2", cuda="13.2", tensorrt="10.16")


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A place where engines run."""

    name: str
    compute_capability: str
    memory_bytes: int
    """Of a Jetson: what processor and GPU share."""
    family: Family = "rtx"
    architecture: str = ""
    shown_bytes: int = 0
    """Of its memory what Linux sees; 0 where that is not known, or where it is a GPU's own."""
    tensor_tops: dict[Precision, float] = {}
    """Dense operations of its tensor cores in 10**12 per second in the first of its modes, where they are known."""
    modes: tuple[PowerMode, ...] = ()
    """Those with known clocks, the fastest first."""
    other_modes: tuple[str, ...] = ()
    """Those whose clocks were not found."""
    software: tuple[Software, ...] = ()
    sources: tuple[str, ...] = ()
    gpu: str = ""
    """The name that CUDA gives the GPU, where the board is this machine's."""

    @property
    def bandwidth_gb_s(self) -> float | None:
        """In the fastest mode; None where it is not known."""
        return self.modes[0].bandwidth_gb_s if self.modes else None

    @property
    def usable_bytes(self) -> int:
        """What a model and its runtime may take: on a Jetson without what Linux hides and takes for itself."""
        if self.family == "rtx":
            return self.memory_bytes
        return (self.shown_bytes or int(SHOWN_SHARE * self.memory_bytes)) - SYSTEM_BYTES

    def mode(self, name: str | None = None) -> PowerMode:
        """A power mode by name, or the fastest. Raises ConfigError where its clocks are not known."""
        for mode in self.modes:
            if name is None or mode.name.lower() == name.lower():
                return mode
        expected = ", ".join(mode.name for mode in self.modes) or "a board whose clocks are known"
        raise ConfigError(explain(f"The power mode of {self.name}", expected=expected, found=name, todo="Choose one."))


def _tensor_tops(int8: float) -> dict[Precision, float]:
    """Of an Ampere GPU: float16 and bfloat16 half as fast as int8, as in its tensor cores throughout."""
    return {"float16": int8 / 2, "int8": int8}


def _orin(name: str, gib: int, shown_mib: int, int8_tops: float, modes: tuple[PowerMode, ...], **more: object) -> Board:
    return Board(
        name=name,
        compute_capability="8.7",
        memory_bytes=gib * GIB,
        family="orin",
        architecture="Ampere",
        shown_bytes=shown_mib * MIB,
        tensor_tops=_tensor_tops(int8_tops),
        modes=modes,
        software=(JETPACK_6, JETPACK_7),
        **more,  # type: ignore[arg-type]
    )


def _thor(name: str, gib: int, shown_mib: int, float4_tops: float, mode: PowerMode, **more: object) -> Board:
    rates: dict[Precision, float] = {
        "float16": float4_tops / 4,
        "float8": float4_tops / 2,
        "int8": float4_tops / 2,
        "float4": float4_tops,
    }
    return Board(
        name=name,
        compute_capability="11.0",
        memory_bytes=gib * GIB,
        family="thor",
        architecture="Blackwell",
        shown_bytes=shown_mib * MIB,
        tensor_tops=rates,
        modes=(mode,),
        software=(JETPACK_7,),
        **more,  # type: ignore[arg-type]
    )


def _mode(name: str, gpu_mhz: float, bandwidth_gb_s: float) -> PowerMode:
    return PowerMode(name=name, gpu_mhz=gpu_mhz, bandwidth_gb_s=bandwidth_gb_s)


BOARDS = {
    board.name: board
    for board in (
        _orin(
            "orin-nano-4gb",
            4,
            0,
            10,
            (_mode("10W", 625, 34),),
            other_modes=("7W", "25W", "MAXN_SUPER"),
            sources=("nano", "jetpack6", "jetpack7"),
        ),
        _orin(
            "orin-nano-8gb",
            8,
            7620,
            33,
            (_mode("MAXN_SUPER", 1020, 102), _mode("15W", 625, 68)),
            other_modes=("7W", "25W"),
            sources=("nano", "super", "modes", "tegrastats", "jetpack6", "jetpack7"),
        ),
        _orin(
            "orin-nx-8gb",
            8,
            0,
            38.5,
            (_mode("MAXN_SUPER", 1173, 102), _mode("MAXN", 765, 102)),
            other_modes=("10W", "15W", "20W", "40W"),
            sources=("nx", "super", "jetpack6", "jetpack7"),
        ),
        _orin(
            "orin-nx-16gb",
            16,
            15656,
            38.5,
            (_mode("MAXN_SUPER", 1173, 102), _mode("MAXN", 918, 102)),
            other_modes=("10W", "15W", "25W", "40W"),
            sources=("nx", "super", "tegrastats", "jetpack6", "jetpack7"),
        ),
        _orin(
            "agx-orin-32gb",
            32,
            30536,
            54,
            (_mode("MAXN", 939, 204.8),),
            other_modes=("15W", "30W", "40W"),
            sources=("agx", "tegrastats", "jetpack6", "jetpack7"),
        ),
        _orin(
            "agx-orin-64gb",
            64,
            62841,
            85,
            (_mode("MAXN", 1300, 204.8),),
            other_modes=("15W", "30W", "50W"),
            sources=("agx", "tegrastats", "jetpack6", "jetpack7"),
        ),
        _thor(
            "thor-t4000",
            64,
            0,
            600,
            _mode("maximum", 1570, 273),
            sources=("thor", "t4000", "jetpack7"),
        ),
        _thor(
            "thor-t5000",
            128,
            125772,
            1035,
            _mode("MAXN", 1570, 273),
            other_modes=("40 to 130 W",),
            sources=("thor", "tegrastats", "jetpack7"),
        ),
        Board(name="rtx-3060", compute_capability="8.6", memory_bytes=12 * GIB, architecture="Ampere"),
        Board(
            name="rtx-4090",
            compute_capability="8.9",
            memory_bytes=24 * GIB,
            architecture="Ada",
            tensor_tops={"float16": 165.2, "float8": 330.3, "int8": 660.6},
            modes=(_mode("default", 2520, 1008),),
            sources=("4090",),
        ),
        Board(
            name="rtx-5090",
            compute_capability="12.0",
            memory_bytes=32 * GIB,
            architecture="Blackwell",
            tensor_tops={"float16": 209.5, "float4": 1676},
            modes=(_mode("default", 2407, 1792),),
            sources=("5090",),
        ),
    )
}


def board_named(name: str | None) -> Board:
    """A board of the table. Raises ConfigError, which lists their names."""
    if name not in BOARDS:
        raise ConfigError(explain("--board", expected=f"one of {', '.join(BOARDS)}", found=name, todo="Choose one."))
    return BOARDS[name]


def table() -> str:
    """The boards as Markdown tables, as docs/boards.md has them."""
    memory = [_memory_row(board) for board in BOARDS.values()]
    rates = [row for board in BOARDS.values() for row in _rate_rows(board)]
    headings = ["board", "GPU", "memory", "Linux sees", "left for a model", "JetPack (CUDA, TensorRT)", "sources"]
    lines = [_line(headings), _line(["---"] * len(headings)), *map(_line, memory), ""]
    headings = ["board", "mode", "GPU, MHz", "GB/s", *PRECISIONS]
    lines += [_line(headings), _line(["---"] * len(headings)), *map(_line, rates), ""]
    return "\n".join(lines + [f"* {name}: {source}" for name, source in SOURCES.items()]) + "\n"


def _memory_row(board: Board) -> list[str]:
    """What a board is, and how much memory it has."""
    shown = f"{board.shown_bytes // MIB:,} MiB" if board.shown_bytes else "not found"
    return [
        f"`{board.name}`",
        f"{board.architecture}, {board.compute_capability}",
        f"{board.memory_bytes // GIB} GiB",
        "all" if board.family == "rtx" else shown,
        f"{board.usable_bytes / 1e9:.1f} GB",
        ", ".join(f"{each.jetpack} ({each.cuda}, {each.tensorrt})" for each in board.software) or "-",
        ", ".join(board.sources) or "not found",
    ]


def _rate_rows(board: Board) -> list[list[str]]:
    """Of each power mode its clocks, and what they make of the tensor cores' rates."""
    rows = []
    for mode in board.modes:
        clock = mode.gpu_mhz / board.modes[0].gpu_mhz
        found = [board.tensor_tops.get(precision) for precision in PRECISIONS]
        rates = ["-" if rate is None else f"{clock * rate:.4g}" for rate in found]
        rows.append([f"`{board.name}`", mode.name, f"{mode.gpu_mhz:g}", f"{mode.bandwidth_gb_s:g}", *rates])
    if board.other_modes:
        rows.append(
            [f"`{board.name}`", ", ".join(board.other_modes), "not found", "not found", *["-"] * len(PRECISIONS)]
        )
    return rows


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
