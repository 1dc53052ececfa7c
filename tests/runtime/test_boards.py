"""The table of boards, what is said to fit, and bytes and times that must grow with what they are made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk import traffic
from edge_sdk.boards import BOARDS, SOURCES, Board, board_named, table
from edge_sdk.errors import ConfigError
from edge_sdk.model import (
    AttentionSpec,
    LayerSpec,
    Mamba2Spec,
    MlpSpec,
    ModelConfig,
    MoeSpec,
    MtpSpec,
    ParallelSpec,
)
from edge_sdk.planning import CACHES, Request, compare, make_plan, refusal, storable
from edge_sdk.roofline import decode_seconds, prefill_seconds
from edge_sdk.traffic import WeightStorage, bundle_storage, count, step_bytes, step_weight_bytes, weight_bytes
from places import ROOT

EDGE_SDK = (sys.executable, "-m", "edge_sdk.cli", "plan")
TABLES = ROOT / "docs" / "boards.md"
MEASURED = [board for board in BOARDS.values() if board.modes]
BFLOAT16 = bundle_storage("bfloat16")


def widths(largest: int) -> st.SearchStrategy[int]:
    return st.integers(1, largest).map(lambda number: 32 * number)


ATTENTION = st.builds(
    AttentionSpec,
    heads=st.sampled_from([4, 8]),
    kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([32, 64]),
    bias=st.booleans(),
    output_bias=st.booleans(),
    qk_norm=st.booleans(),
)
MAMBA = st.builds(
    Mamba2Spec,
    heads=st.sampled_from([4, 8]),
    head_dim=st.sampled_from([32, 64]),
    groups=st.sampled_from([1, 2]),
    state=st.sampled_from([16, 128]),
    proj_bias=st.booleans(),
    conv_bias=st.booleans(),
)
MLP = st.builds(
    MlpSpec, intermediate=widths(8), activation=st.sampled_from(["relu2", "silu_gated"]), bias=st.booleans()
)
MOE = st.builds(
    MoeSpec,
    experts=st.integers(4, 16),
    top_k=st.integers(1, 4),
    intermediate=widths(4),
    shared_intermediate=widths(4),
    latent=st.none() | widths(2),
    activation=st.sampled_from(["relu2", "silu_gated"]),
)
PARALLEL = st.builds(ParallelSpec, mamba=MAMBA, attention=ATTENTION)
LAYERS: st.SearchStrategy[LayerSpec] = st.one_of(ATTENTION, MAMBA, MLP, MOE, PARALLEL)
CONFIGS = st.builds(
    ModelConfig,
    family=st.just("any"),
    vocab_size=st.integers(8, 5000),
    hidden=widths(8),
    layers=st.lists(LAYERS, min_size=1, max_size=5).map(tuple),
    max_length=st.just(1 << 20),
    mtp=st.none() | st.builds(MtpSpec, layers=st.lists(st.one_of(ATTENTION, MLP), min_size=1, max_size=2).map(tuple)),
)
STORED = st.sampled_from([bundle_storage(name) for name in ("float32", "bfloat16", "int8", "int4")])


@settings(deadline=None)
@given(CONFIGS)
def test_counts_are_the_parameters(config: ModelConfig) -> None:
    """With a byte for a number of a product or embedding, bytes are parameters but for the other three of float32's."""
    one_byte = WeightStorage(name="bytes", bits=8, embedding_bits=8)
    layers = [count(spec, config.hidden) for spec in config.layers]
    extra = 0
    for spec, counts in zip(config.layers, layers):
        mamba = spec.mamba if isinstance(spec, ParallelSpec) else spec
        unused = mamba.conv_dim if isinstance(mamba, Mamba2Spec) and not mamba.conv_bias else 0
        assert counts.total == spec.parameters(config.hidden) + config.hidden + unused
        extra += unused
    plain = sum(counts.plain for counts in layers) + config.hidden
    if config.mtp is not None:
        heads = [count(spec, config.hidden) for spec in config.mtp.layers]
        plain += sum(counts.plain for counts in heads) + 3 * config.hidden
    assert weight_bytes(config, one_byte) == config.parameters() + 3 * plain + extra


@settings(deadline=None)
@given(CONFIGS)
def test_what_a_token_reads_is_active(config: ModelConfig) -> None:
    body = msgspec.structs.replace(config, mtp=None)
    layers = [count(spec, config.hidden) for spec in body.layers]
    read = sum(counts.read(1) + counts.plain for counts in layers) + body.hidden + body.vocab_size * body.hidden
    active = body.active_parameters() - body.vocab_size * body.hidden
    unused = sum(counts.total - spec.parameters(body.hidden) - body.hidden for spec, counts in zip(body.layers, layers))
    assert read == pytest.approx(active + unused)
    assert all(counts.read(tokens) <= counts.read(tokens + 1) for counts in layers for tokens in range(1, 40))
    assert all(counts.read(10**6) == pytest.approx(counts.products + counts.expert_products) for counts in layers)


@settings(deadline=None)
@given(CONFIGS, STORED, st.integers(1, 1 << 19))
def test_states_are_those_of_the_model(config: ModelConfig, stored: WeightStorage, context: int) -> None:
    """Twice what does not grow, for reading and writing, and once the caches."""
    whole, fixed = config.state_bytes(1, context), config.state_bytes(1, 0)
    assert step_bytes(config, stored, context) - step_weight_bytes(config, stored) == pytest.approx(whole + fixed)


@settings(deadline=None)
@given(CONFIGS, st.sampled_from(list(BOARDS.values())), st.integers(1, 1 << 18), st.integers(1, 1 << 18))
def test_more_context_never_takes_less_and_is_never_faster(
    config: ModelConfig, board: Board, context: int, more: int
) -> None:
    plans = [make_plan(config, board, Request(context=size, prompt=1)) for size in (context, context + more)]
    for short, long in zip(plans[0].settings, plans[1].settings):
        assert long.peak_bytes >= short.peak_bytes
        assert (long.decode_tokens_per_second or 0.0) <= (short.decode_tokens_per_second or 0.0)
        assert short.fits == (short.peak_bytes <= board.usable_bytes)
        assert (
            short.peak_bytes
            >= short.weight_bytes + short.state_bytes
            == short.weight_bytes + with_cache(config, short.cache).state_bytes(1, context)
        )


def with_cache(config: ModelConfig, cache: str) -> ModelConfig:
    return msgspec.structs.replace(config, cache_dtype=cache)


@settings(deadline=None)
@given(CONFIGS, STORED, st.sampled_from(MEASURED), st.floats(1, 4), st.integers(1, 600))
def test_a_faster_board_is_never_slower(
    config: ModelConfig, stored: WeightStorage, board: Board, factor: float, tokens: int
) -> None:
    mode = board.modes[0]
    faster = [
        msgspec.structs.replace(mode, bandwidth_gb_s=factor * mode.bandwidth_gb_s),
        msgspec.structs.replace(mode, gpu_mhz=factor * mode.gpu_mhz),
    ]
    for better in faster:
        assert decode_seconds(config, stored, board, better, 9) <= decode_seconds(config, stored, board, mode, 9)
        read, sooner = (prefill_seconds(config, stored, board, each, tokens) for each in (mode, better))
        assert (read is None) == (sooner is None)
        assert read is None or sooner is None or sooner <= read
    if (read := prefill_seconds(config, stored, board, mode, tokens)) is not None:
        later = prefill_seconds(config, stored, board, mode, tokens, context=1000)
        assert later is not None
        assert later >= read > 0


@settings(deadline=None)
@given(CONFIGS, st.sampled_from(list(BOARDS.values())), st.integers(1, 1 << 20))
def test_the_longest_context_is_the_last_one_that_fits(config: ModelConfig, board: Board, context: int) -> None:
    plan = make_plan(config, board, Request(context=context, prompt=1))
    if plan.longest_context is None or plan.recommended is None:
        return
    setting = plan.recommended
    alone = setting.peak_bytes - setting.state_bytes
    stored = with_cache(config, setting.cache)
    assert alone + stored.state_bytes(1, plan.longest_context) <= board.usable_bytes
    if plan.longest_context < config.max_length:
        assert alone + stored.state_bytes(1, plan.longest_context + 1) > board.usable_bytes


def test_activations_are_more_than_one_layers_and_grow_with_the_block() -> None:
    config = small()
    assert traffic.activation_bytes(config, 512) > traffic.activation_bytes(config, 1) > 4 * config.vocab_size


@pytest.mark.parametrize(
    "odd",
    [
        MlpSpec(intermediate=40),
        MoeSpec(experts=4, top_k=2, intermediate=64, shared_intermediate=64, latent=40),
        MoeSpec(experts=4, top_k=2, intermediate=40, shared_intermediate=64),
        MoeSpec(experts=4, top_k=2, intermediate=64, shared_intermediate=40),
        AttentionSpec(heads=5, kv_heads=1, head_dim=8),
        Mamba2Spec(heads=5, head_dim=8, groups=1, state=16),
    ],
)
def test_a_width_that_blocks_do_not_fill_is_stored_in_16_bits(odd: LayerSpec) -> None:
    config = msgspec.structs.replace(small(), layers=(odd,))
    assert [stored.name for stored in storable(config)] == ["bfloat16"]
    assert [stored.name for stored in storable(small())] == ["bfloat16", "int8", "int4"]


def small(layers: int = 2, hidden: int = 2048) -> ModelConfig:
    """A dense decoder."""
    attention = AttentionSpec(heads=16, kv_heads=8, head_dim=128)
    block = (attention, MlpSpec(intermediate=3 * hidden, activation="silu_gated"))
    return ModelConfig(family="any", vocab_size=32000, hidden=hidden, layers=block * layers, max_length=1 << 17)


def test_what_is_recommended_fits_and_is_precise_enough() -> None:
    config = small(28)
    for rate in (0.0, 20.0, 1e9):
        plan = make_plan(config, board_named("orin-nano-8gb"), Request(rate=rate))
        fitting = [setting for setting in plan.settings if setting.fits]
        fast = [setting for setting in fitting if (setting.decode_tokens_per_second or 0) >= rate]
        fastest = max(fitting, key=lambda setting: setting.decode_tokens_per_second or 0)
        assert plan.recommended == (fast[0] if fast else fastest)
    assert fastest.weights == "int4"
    modes = fastest.decode_by_mode
    assert modes["MAXN_SUPER"] > modes["15W"]
    slow = make_plan(config, board_named("orin-nano-8gb"), Request(mode="15w"))
    assert slow.settings[-1].decode_tokens_per_second == modes["15W"]


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    config, request = small(200, 4096), Request(context=100_000)
    plan = make_plan(config, board_named("orin-nx-16gb"), request)
    assert plan.recommended is None
    text = str(refusal(plan, compare(config, request)))
    least = min(setting.peak_bytes for setting in plan.settings)
    assert f"{(least - plan.usable_bytes) / 1e9:,.2f} GB too much" in text
    assert "thor-t5000" in text
    assert "orin-nx-16gb," not in text.partition("What fits")[2]
    long = make_plan(small(28), board_named("orin-nano-8gb"), Request(context=1 << 17))
    assert long.recommended is None
    assert long.longest_context is not None
    assert f"--context {long.longest_context}" in str(refusal(long, []))
    again = make_plan(small(28), board_named("orin-nano-8gb"), Request(context=long.longest_context))
    assert again.recommended is not None


def test_a_drafting_head_is_left_out_as_exports_do() -> None:
    config, board = small(), board_named("agx-orin-64gb")
    drafting = msgspec.structs.replace(config, mtp=MtpSpec(layers=(MlpSpec(intermediate=4096),)))
    assert make_plan(drafting, board, Request()) == make_plan(config, board, Request())
    (setting,) = make_plan(drafting, board, Request(), [BFLOAT16]).settings
    assert setting.weight_bytes == weight_bytes(drafting, BFLOAT16) > weight_bytes(config, BFLOAT16)


def test_a_prompt_is_read_in_blocks() -> None:
    config, board = small(), board_named("agx-orin-64gb")
    setting = make_plan(config, board, Request(prompt=700)).settings[0]
    blocks = [prefill_seconds(config, BFLOAT16, board, board.mode(), *block) for block in ((512, 0), (188, 512))]
    assert setting.prefill_tokens_per_second == pytest.approx(700 / sum(seconds or 0 for seconds in blocks))


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: board_named("raspberry"), "orin-nano-4gb, orin-nano-8gb, .* found raspberry"),
        (lambda: board_named("rtx-3060").mode(), "clocks are known"),
        (lambda: board_named("orin-nano-8gb").mode("25W"), "MAXN_SUPER, 15W, found 25W"),
        (lambda: make_plan(small(), board_named("thor-t5000"), Request(context=1 << 20)), "at most the model's 131072"),
        (lambda: Request(prompt=0), "--prompt"),
        (lambda: Request(rate=-1.0), "--rate"),
    ],
)
def test_what_is_not_there_is_named(ask: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ask()  # type: ignore[operator]


def test_the_table_is_consistent() -> None:
    for name, board in BOARDS.items():
        assert board.name == name
        assert 0 < board.usable_bytes <= board.memory_bytes
        assert set(board.sources) <= set(SOURCES)
        assert bool(board.sources) == bool(board.modes)
        if board.shown_bytes:
            assert 0.9 < board.shown_bytes / board.memory_bytes < 1
        rates = board.tensor_tops
        assert all(rates["float16"] * 2 == pytest.approx(rates[name], rel=1.1) for name in rates if name == "int8")
        clocks = [mode.gpu_mhz for mode in board.modes]
        assert clocks == sorted(clocks, reverse=True)
    # operations per clock of a tensor core: 1024 of Ampere's in int8, and what NVIDIA says of Super and plain modes
    for name, cores in {"orin-nano-8gb": 32, "orin-nx-16gb": 32, "agx-orin-32gb": 56, "agx-orin-64gb": 64}.items():
        board = BOARDS[name]
        assert board.tensor_tops["int8"] == pytest.approx(1024e-6 * cores * board.modes[0].gpu_mhz, rel=0.02)


def test_the_docs_have_the_table() -> None:
    assert table() in TABLES.read_text(encoding="utf-8"), table()


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*EDGE_SDK, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A model without weights, as the SDK itself describes it."""
    path = tmp_path / "model.json"
    path.write_bytes(msgspec.json.encode(small(28)))
    return path


def test_the_command_says_it_as_json(described: Path) -> None:
    one = json.loads(call(described, "--board", "orin-nx-16gb", "--context", 32768, "--json").stdout)
    expected = make_plan(small(28), board_named("orin-nx-16gb"), Request(context=32768))
    assert one == json.loads(msgspec.json.encode(expected))
    every = json.loads(call(described, "--all", "--context", 100, "--json").stdout)
    assert [plan["board"] for plan in every] == list(BOARDS)
    assert every[0]["prompt"] == 100


def test_the_command_shows_tables(described: Path) -> None:
    pytest.importorskip("rich", reason="the extra `plan` is not installed")
    one = call(described, "--board", "orin-nano-8gb").stdout
    assert "Recommended: weights in" in one
    assert all(name in one for name in ("bfloat16", "int8", "int4", *CACHES, "MAXN_SUPER", "Note: "))
    every = call(described, "--all").stdout
    assert all(name in every for name in BOARDS)
    assert max(map(len, (one + every).splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--board", "jetson"), "expected one of orin-nano-4gb"),
        ((), "--board or --all"),
        (("--all", "--board", "thor-t5000"), "--board or --all"),
        (("--board", "orin-nano-4gb", "--context", "131072"), "What fits: "),
        (("--board", "orin-nx-16gb", "--mode", "3W"), "MAXN_SUPER, MAXN, found 3W"),
    ],
)
def test_the_command_ends_in_one_message(described: Path, arguments: tuple[str, ...], says: str) -> None:
    result = call(described, "--json", *arguments)
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("text", [None, "{", "[1]", '{"layers": [], "family": "x"}'])
def test_what_is_no_model_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    result = call(path, "--board", "thor-t5000")
    assert result.returncode == 1
    assert "expected a bundle, a checkpoint or a config.json" in result.stderr
