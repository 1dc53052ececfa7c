"""The commands that make a checkpoint smaller or ordinary: ``edge-export import`` and ``edge-export quantize``."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import msgspec
import typer
from rich.table import Table

from edge_export.calibration import Sequences, batched, compare, read_sequences
from edge_export.checkpoint import Checkpoint, fingerprint, load_model
from edge_export.importing import Dtype, import_checkpoint
from edge_export.plan import FILE, LEAVES, Level, Plan, quantizable, total_bytes
from edge_export.quantize import Convert, convert
from edge_export.sensitivity import choose, measure
from edge_export.solve import solve
from edge_export.terminal import console
from edge_export.torch_commands import bytes_written, steps_done
from edge_export.torch_model import HybridLM
from edge_sdk.files import resumable_directory
from edge_sdk.text import TextCodec

app = typer.Typer()

REPORT = "report.json"


@app.command(name="import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder; FP8 and NVFP4 ones are dequantised.")],
    out: Annotated[Path, typer.Option(help="Folder of the ordinary checkpoint to write.")],
    dtype: Annotated[str, typer.Option(help="Of matrices: bfloat16 or float32.")] = "bfloat16",
) -> None:
    """Write an ordinary checkpoint from any that can be read; run again after an interruption to go on."""
    with bytes_written("weights") as progress:
        import_checkpoint(checkpoint, out, msgspec.convert(dtype, Dtype), progress)
    console.print(f"{out}: {dtype}")


class QuantizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What ``edge-export quantize`` is asked for; the key that an interrupted run is gone on with."""

    weights: Literal["int4", "int8"]
    method: Literal["rtn", "gptq"]
    block_size: int
    budget_gb: Optional[float]
    data: str
    samples: int
    max_length: int


@app.command()
def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    data: Annotated[Path, typer.Option(help="Calibration data: JSONL of {prompt, completion} or {text}, or a text.")],
    out: Annotated[
        Optional[Path], typer.Option(help="Folder for the plan; give it to `edge-export onnx --plan`.")
    ] = None,
    test: Annotated[Optional[Path], typer.Option(help="Other data to report on; the calibration data if none.")] = None,
    weights: Annotated[
        str, typer.Option(help="int4 or int8, for all projections and experts; the head int8.")
    ] = "int4",
    method: Annotated[str, typer.Option(help="gptq, by calibration data, or rtn, round to nearest.")] = "gptq",
    block_size: Annotated[int, typer.Option(help="Values that share a scale.")] = 32,
    budget_gb: Annotated[
        Optional[float],
        typer.Option(help="Choose int4, int8 or float32 leaf by leaf, for so many GB of weights in all."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Sequences of each file that are used.")] = 256,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of a sequence that are used.")] = 512,
    report_only: Annotated[
        bool, typer.Option(help="Only compare settings, rounded to nearest; write nothing.")
    ] = False,
) -> None:
    """Choose how a checkpoint's weights are stored, by calibration data, and report what each setting costs."""
    request = msgspec.convert(
        {
            "weights": weights,
            "method": method,
            "block_size": block_size,
            "budget_gb": budget_gb,
            "data": f"{data.resolve()} {data.stat().st_size} {data.stat().st_mtime_ns}",
            "samples": samples,
            "max_length": max_length,
        },
        QuantizeRequest,
    )
    if not report_only and out is None:
        raise typer.BadParameter("--out is needed, or --report-only")
    codec, source = TextCodec(checkpoint), Checkpoint(checkpoint)
    end = next(iter(source.config.eos_token_ids), None)

    def read(path: Path) -> list[Sequences]:
        return batched(read_sequences(path, codec, end, samples=samples, max_length=max_length))

    batches = read(data)
    scored = batches if test is None else read(test)
    if report_only or out is None:
        _show(report(load_model(checkpoint).eval(), scored, block_size))
        return
    key = json.dumps([fingerprint(checkpoint), msgspec.to_builtins(request)])
    with resumable_directory(out, key) as folder:
        (folder / LEAVES).mkdir(exist_ok=True)
        plan = make_plan(checkpoint, source, request, batches, folder)
        if plan.method == "gptq":
            with steps_done("GPTQ, layers") as progress:
                solve(source, plan, batches, folder, progress)
        rows = report(load_model(checkpoint).eval(), scored, block_size, plan, folder)
        (folder / REPORT).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    _show(rows)
    console.print(f"{out}: {plan.label}; next: edge-export onnx {checkpoint} --plan {out} --out ...")


def make_plan(
    checkpoint: Path, source: Checkpoint, request: QuantizeRequest, batches: list[Sequences], folder: Path
) -> Plan:
    """The plan, written to the folder; that of an interrupted run if there is one."""
    if (folder / FILE).exists():
        return msgspec.json.decode((folder / FILE).read_bytes(), type=Plan)
    if request.budget_gb is None:
        level: Level = request.weights
        leaves: dict[str, Level] = dict.fromkeys(quantizable(source.config), level) | {"lm_head": "int8"}
    else:
        model, reference = load_model(checkpoint).eval(), load_model(checkpoint).eval()
        with steps_done("sensitivity, leaves") as progress:
            found = measure(model, reference, batches, request.block_size, progress)
        (folder / "sensitivity.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        leaves = choose(source.config, found, request.block_size, int(request.budget_gb * 1e9))
    plan = Plan(checkpoint=fingerprint(checkpoint), block_size=request.block_size, method=request.method, leaves=leaves)
    (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")
    return plan


def report(
    model: HybridLM, batches: list[Sequences], block_size: int, plan: Plan | None = None, folder: Path | None = None
) -> list[dict[str, Any]]:
    """Bytes, perplexity and closeness to the float model of some settings and of the plan.

    Needs the model in float32 twice.
    """
    names = list(quantizable(model.config))
    settings: dict[str, tuple[dict[str, Level], Convert | None]] = {"float32": (dict.fromkeys(names, "float32"), None)}
    for level in ("int8", "int4"):
        leaves: dict[str, Level] = dict.fromkeys(names, level) | {"lm_head": "int8"}
        rounded = Plan(checkpoint="", block_size=block_size, method="rtn", leaves=leaves)
        settings[rounded.label] = leaves, rounded.convert(None)
    if plan is not None:
        settings[f"plan: {plan.label}"] = plan.leaves, plan.convert(folder)
    rows = []
    for name, (leaves, make) in settings.items():
        changed = model if make is None else convert(copy.deepcopy(model), make)
        quality = compare(changed, model, batches)
        size = total_bytes(model.config, leaves, block_size)
        rows.append({"setting": name, "bytes": size, **msgspec.to_builtins(quality)})
    return rows


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("setting", "bytes", "perplexity", "top-1 agreement", "KL (nats)")
    for row in rows:
        numbers = (f"{row['bytes']:,}", f"{row['perplexity']:.5f}", f"{row['top1_agreement']:.2%}", f"{row['kl']:.2e}")
        table.add_row(row["setting"], *numbers)
    console.print(table)
