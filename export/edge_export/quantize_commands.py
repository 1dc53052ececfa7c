"""The commands that make a checkpoint smaller or ordinary: ``edge-export import`` and ``edge-export quantize``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import msgspec
import typer

from edge_export.arguments import chosen, require_choice, require_target
from edge_export.calibration import Sequences, batched, read_sequences
from edge_export.checkpoint import CONFIG, Checkpoint, fingerprint, load_model
from edge_export.command_options import end_token
from edge_export.documents import data_key
from edge_export.dry_run import DryRun, require_room, show_estimate
from edge_export.export_estimate import estimate_import
from edge_export.importing import Dtype, import_checkpoint
from edge_export.plan import FILE, LEAVES, Plan, QuantizeRequest
from edge_export.quantize_estimate import estimate_quantize, written_bytes
from edge_export.quantize_report import report, settings, show_report
from edge_export.sensitivity import choose, measure
from edge_export.solve import solve
from edge_export.terminal import console
from edge_export.torch_commands import bytes_written, steps_done
from edge_sdk.errors import ConfigError, explain
from edge_sdk.files import resumable_directory
from edge_sdk.text import TextCodec

app = typer.Typer()

REPORT = "report.json"


@app.command(name="import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder; FP8 and NVFP4 ones are dequantised.")],
    out: Annotated[Path, typer.Option(help="Folder of the ordinary checkpoint to write.")],
    dtype: Annotated[str, typer.Option(help="Of matrices: bfloat16 or float32.")] = "bfloat16",
    dry_run: DryRun = False,
) -> None:
    """Write an ordinary checkpoint from any that can be read; run again after an interruption to go on.

    For example: edge-export import NVFP4_CHECKPOINT --out checkpoint
    """
    require_choice("dtype", dtype, Dtype)
    wanted = msgspec.convert(dtype, Dtype)
    require_target(out, CONFIG, checkpoint)
    if dry_run:
        show_estimate(estimate_import(checkpoint, wanted), out)
        return
    with bytes_written("weights") as progress:
        import_checkpoint(checkpoint, out, wanted, progress)
    console.print(f"{out}: {dtype}")


PlanFolder = Annotated[Optional[Path], typer.Option(help="Folder for the plan; give it to `edge-export onnx --plan`.")]
Scored = Annotated[Optional[Path], typer.Option(help="Other data to report on; the calibration data if none.")]
BudgetGb = Annotated[
    Optional[float], typer.Option(help="Choose int4, int8 or float32 leaf by leaf, for so many GB of weights in all.")
]
BlockSize = Annotated[int, typer.Option(help="Values that share a scale; the native kernels take multiples of 32.")]
Step = Annotated[
    int,
    typer.Option(
        min=1, help="Tokens fed at once where states and caches are compared: 1 is decoding, more takes less time."
    ),
]
ReportOnly = Annotated[
    bool, typer.Option("--report-only", help="Only compare settings, rounded to nearest; write nothing.")
]
NoReport = Annotated[
    bool, typer.Option("--no-report", help="Compare nothing, which would need the float32 model in memory twice.")
]


@app.command()
def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    data: Annotated[Path, typer.Option(help="Calibration data, of the kinds that distil takes; some hundred samples.")],
    out: PlanFolder = None,
    test: Scored = None,
    weights: Annotated[str, typer.Option(help="int4 or int8, for projections and experts; the head int8.")] = "int4",
    method: Annotated[str, typer.Option(help="gptq, by calibration data, or rtn, round to nearest.")] = "gptq",
    block_size: BlockSize = 32,
    cache_dtype: Annotated[str, typer.Option(help="Of keys and values: float32, float16 or int8.")] = "float16",
    state_dtype: Annotated[str, typer.Option(help="Of scans' states between steps: float32, float16.")] = "float32",
    budget_gb: BudgetGb = None,
    samples: Annotated[int, typer.Option(min=1, help="Sequences of each file that are used.")] = 256,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of a sequence that are used.")] = 512,
    step: Step = 1,
    report_only: ReportOnly = False,
    no_report: NoReport = False,
    dry_run: DryRun = False,
) -> None:
    """Choose how a checkpoint's weights are stored, by calibration data, and report what each setting costs.

    For example: edge-export quantize CHECKPOINT --data texts --out plan --budget-gb 2.5
    """
    if out is not None:
        require_target(out, FILE, checkpoint, data, test)
    elif not (report_only or dry_run):
        raise ConfigError(explain("--out", expected="a folder, or --report-only", found="none", todo="Give one."))
    source = _language_model(checkpoint)
    codec, end = TextCodec(checkpoint), end_token(source.config)
    request = chosen(
        {
            "weights": weights,
            "method": method,
            "block_size": block_size,
            "cache_dtype": cache_dtype,
            "state_dtype": state_dtype,
            "budget_gb": budget_gb,
            "data": data_key(data, checkpoint, end, max_length),
            "samples": samples,
            "max_length": max_length,
            "report_only": report_only,
        },
        QuantizeRequest,
    )

    def read(path: Path) -> list[Sequences]:
        return batched(read_sequences(path, codec, end, samples=samples, max_length=max_length))

    batches = read(data)
    scored = batches if test is None else read(test)
    if dry_run:
        estimate = estimate_quantize(checkpoint, source, request, batches, scored, compared=not no_report)
        show_estimate(estimate, out or Path())
    elif report_only or out is None:
        compared = settings(source.config, block_size)
        show_report(report(load_model(checkpoint).eval(), scored, compared, block_size, step))
    else:
        plan, rows = write_plan(checkpoint, source, request, batches, None if no_report else scored, step, out)
        show_report(rows)
        console.print(f"{out}: {plan.label}; next: edge-export onnx {checkpoint} --plan {out} --out ...")


def _language_model(path: Path) -> Checkpoint:
    """Raises ConfigError for a policy."""
    source = Checkpoint(path)
    if source.config.policy is not None:
        todo = "Store it with `edge-export onnx --weights int8` or int4."
        raise ConfigError(explain(str(path), expected="a language model", found="a policy", todo=todo))
    return source


def write_plan(
    checkpoint: Path,
    source: Checkpoint,
    request: QuantizeRequest,
    batches: list[Sequences],
    scored: list[Sequences] | None,
    step: int,
    out: Path,
) -> tuple[Plan, list[dict[str, Any]]]:
    """Writes the plan's folder; returns the plan, and the rows of its report on ``scored``, none without.

    Raises OSError before anything is written if the disk has no room.
    """
    require_room(out, written_bytes(source.config, request))
    key = json.dumps([fingerprint(checkpoint), msgspec.to_builtins(request)])
    rows: list[dict[str, Any]] = []
    with resumable_directory(out, key) as folder:
        (folder / LEAVES).mkdir(exist_ok=True)
        plan = make_plan(checkpoint, source, request, batches, folder)
        if plan.method == "gptq":
            with steps_done("GPTQ, layers") as progress:
                solve(source, plan, batches, folder, progress)
        if scored is not None:
            compared = settings(source.config, request.block_size, plan, folder)
            rows = report(load_model(checkpoint).eval(), scored, compared, request.block_size, step)
            (folder / REPORT).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return plan, rows


def make_plan(
    checkpoint: Path, source: Checkpoint, request: QuantizeRequest, batches: list[Sequences], folder: Path
) -> Plan:
    """The plan, written to the folder; that of an interrupted run if there is one."""
    if (folder / FILE).exists():
        return msgspec.json.decode((folder / FILE).read_bytes(), type=Plan)
    if request.budget_gb is None:
        leaves = request.leaves(source.config)
    else:
        model, reference = load_model(checkpoint).eval(), load_model(checkpoint).eval()
        with steps_done("sensitivity, leaves") as progress:
            found = measure(model, reference, batches, request.block_size, progress)
        (folder / "sensitivity.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        leaves = choose(source.config, found, request.block_size, int(request.budget_gb * 1e9))
    plan = Plan(
        checkpoint=fingerprint(checkpoint),
        block_size=request.block_size,
        method=request.method,
        leaves=leaves,
        cache_dtype=request.cache_dtype,
        state_dtype=request.state_dtype,
    )
    (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")
    return plan
