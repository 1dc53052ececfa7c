"""``edge::Mamba2Mixer``: everything of a Mamba-2 layer between in_proj and out_proj."""

from __future__ import annotations

import math

import numpy as np

from edge_plugins.operator import Array, Case, Operator, dtype_of, poison, random_of

DOC = """The Mamba-2 mixer (Dao and Gu 2024, arXiv 2405.21060) with Nemotron-H's grouped gated norm.

proj is split into z (inner), x (inner), B (groups * state), C (groups * state) and dt (heads), with
inner = heads * head_dim. A causal depthwise convolution over [x, B, C], continued from past_conv, and SiLU. Then
per head, with a = -exp(a_log) and dt = clip(softplus(dt + dt_bias), dt_min, dt_max):

    h[t] = exp(dt[t] a) h[t-1] + dt[t] x[t] B[t]^T          (head_dim, state), float32
    y[t] = h[t] C[t] + d x[t]

B and C are shared by the heads of a group. Last y * SiLU(z), RMS-normalised within each group of
inner / groups channels, times norm_weight.

Inputs: proj (batch, length, 2 inner + 2 groups state + heads); conv_weight (conv_dim, kernel); conv_bias
(conv_dim); dt_bias, a_log, d (heads); norm_weight (inner); past_conv (batch, conv_dim, kernel - 1);
past_ssm (batch, heads, head_dim, state), which may be stored as float16 or bfloat16. Outputs: y (batch, length,
inner); present_conv and present_ssm, shaped and stored as the past ones. Attributes: groups; conv_dim = inner +
2 groups state; eps of the norm; dt_min, dt_max.
"""

BODY = """
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    minus_one = Constant <value_ints = [-1]> ()
    groups_value = Constant <value_int: int = @groups> ()
    groups = Unsqueeze (groups_value, zero)
    batch = Shape <start = 0, end = 1> (proj)
    length = Shape <start = 1, end = 2> (proj)
    heads = Shape <start = 1, end = 2> (past_ssm)
    head_dim = Shape <start = 2, end = 3> (past_ssm)
    state = Shape <start = 3, end = 4> (past_ssm)
    group_heads = Div (heads, groups)
    inner = Mul (heads, head_dim)
    group_state = Mul (groups, state)
    conv_dim = Shape <start = 0, end = 1> (conv_weight)
    proj_widths = Concat <axis = 0> (inner, conv_dim, heads)
    conv_widths = Concat <axis = 0> (inner, group_state, group_state)
    z, xbc_raw, dt_raw = Split <axis = 2> (proj, proj_widths)

    xbc_new = Transpose <perm = [0, 2, 1]> (xbc_raw)
    window = Concat <axis = 2> (past_conv, xbc_new)
    kernel = Unsqueeze (conv_weight, one)
    xbc_conv = Conv <group: int = @conv_dim> (window, kernel, conv_bias)
    xbc_sigmoid = Sigmoid (xbc_conv)
    xbc_silu = Mul (xbc_conv, xbc_sigmoid)
    xbc = Cast <to = 1> (xbc_silu)
    x_flat, b_flat, c_flat = Split <axis = 1> (xbc, conv_widths)
    far = Constant <value_ints = [9223372036854775807]> ()
    present_conv = Slice (window, length, far, two)

    x_shape = Concat <axis = 0> (batch, groups, group_heads, head_dim, length)
    bc_shape = Concat <axis = 0> (batch, groups, one, state, length)
    x = Reshape <allowzero = 1> (x_flat, x_shape)
    b = Reshape <allowzero = 1> (b_flat, bc_shape)
    c = Reshape <allowzero = 1> (c_flat, bc_shape)
    b_t = Transpose <perm = [0, 1, 2, 4, 3]> (b)

    dt_float = Cast <to = 1> (dt_raw)
    dt_biased = Add (dt_float, dt_bias)
    dt_positive = Softplus (dt_biased)
    dt_min = Constant <value_float: float = @dt_min> ()
    dt_max = Constant <value_float: float = @dt_max> ()
    dt_clipped = Clip (dt_positive, dt_min, dt_max)
    a_positive = Exp (a_log)
    a = Neg (a_positive)
    rate_flat = Mul (dt_clipped, a)
    head_shape = Concat <axis = 0> (batch, groups, group_heads, one, length)
    dt_by_head = Transpose <perm = [0, 2, 1]> (dt_clipped)
    dt = Reshape <allowzero = 1> (dt_by_head, head_shape)
    rate_by_head = Transpose <perm = [0, 2, 1]> (rate_flat)
    rate = Reshape <allowzero = 1> (rate_by_head, head_shape)

    time_axis = Constant <value_int = 4> ()
    decay = CumSum (rate, time_axis)
    total = ReduceSum <keepdims = 1> (rate, minus_one)
    decay_from = Transpose <perm = [0, 1, 2, 4, 3]> (decay)
    between_all = Sub (decay, decay_from)
    zero_value = Constant <value_int = 0> ()
    one_value = Constant <value_int = 1> ()
    length_value = Squeeze (length, zero)
    to_position = Range (zero_value, length_value, one_value)
    from_position = Unsqueeze (to_position, one)
    causal = LessOrEqual (from_position, to_position)
    lowest = Constant <value_float = -3.4e38> ()
    between_causal = Where (causal, between_all, lowest)
    between = Exp (between_causal)

    x_dt = Mul (x, dt)
    scores = MatMul (b_t, c)
    mixing = Mul (scores, between)
    y_within = MatMul (x_dt, mixing)
    ssm_shape = Concat <axis = 0> (batch, groups, group_heads, head_dim, state)
    past_ssm_float = Cast <to = 1> (past_ssm)
    ssm = Reshape <allowzero = 1> (past_ssm_float, ssm_shape)
    y_from_ssm = MatMul (ssm, c)
    decay_since_start = Exp (decay)
    y_carried = Mul (y_from_ssm, decay_since_start)
    d_shape = Concat <axis = 0> (groups, group_heads, one, one)
    d_wide = Reshape (d, d_shape)
    y_skip = Mul (x, d_wide)
    y_scan = Sum (y_within, y_carried, y_skip)

    rest = CumSum <exclusive = 1, reverse = 1> (rate, time_axis)
    decay_to_end = Exp (rest)
    x_to_end = Mul (x_dt, decay_to_end)
    ssm_added = MatMul (x_to_end, b_t)
    decay_over_all = Exp (total)
    ssm_kept = Mul (ssm, decay_over_all)
    ssm_new = Add (ssm_kept, ssm_added)
    past_shape = Shape (past_ssm)
    ssm_flat = Reshape <allowzero = 1> (ssm_new, past_shape)
    present_ssm = CastLike (ssm_flat, past_ssm)

    y_flat_shape = Concat <axis = 0> (batch, inner, length)
    y_flat = Reshape <allowzero = 1> (y_scan, y_flat_shape)
    y_by_time = Transpose <perm = [0, 2, 1]> (y_flat)
    z_float = Cast <to = 1> (z)
    z_sigmoid = Sigmoid (z_float)
    z_silu = Mul (z_float, z_sigmoid)
    gated_flat = Mul (y_by_time, z_silu)
    group_width = Div (inner, groups)
    gated_shape = Concat <axis = 0> (batch, length, groups, group_width)
    gated = Reshape <allowzero = 1> (gated_flat, gated_shape)
    gated_square = Mul (gated, gated)
    mean_square = ReduceMean <keepdims = 1> (gated_square, minus_one)
    eps = Constant <value_float: float = @eps> ()
    mean_square_eps = Add (mean_square, eps)
    rms = Sqrt (mean_square_eps)
    normed = Div (gated, rms)
    y_shape = Concat <axis = 0> (batch, length, inner)
    normed_flat = Reshape <allowzero = 1> (normed, y_shape)
    normed_cast = CastLike (normed_flat, proj)
    y = Mul (normed_cast, norm_weight)
"""


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))


def reference(
    *,
    proj: Array,
    conv_weight: Array,
    conv_bias: Array,
    dt_bias: Array,
    a_log: Array,
    d: Array,
    norm_weight: Array,
    past_conv: Array,
    past_ssm: Array,
    groups: int,
    conv_dim: int,
    eps: float,
    dt_min: float,
    dt_max: float,
) -> tuple[Array, ...]:
    """The recurrence, one position at a time, in float64."""
    batch, length, _ = proj.shape
    _, heads, head_dim, state = past_ssm.shape
    inner, kernel = heads * head_dim, conv_weight.shape[1]
    z, xbc, dt = np.split(proj.astype(np.float64), [inner, inner + conv_dim], axis=-1)
    window = np.concatenate([past_conv.astype(np.float64), xbc.transpose(0, 2, 1)], axis=-1)
    ssm = past_ssm.astype(np.float64)
    y = np.zeros((batch, length, inner))
    for t in range(length):
        conv = (window[:, :, t : t + kernel] * conv_weight).sum(-1) + conv_bias
        x, b, c = np.split(conv * _sigmoid(conv), [inner, inner + groups * state], axis=-1)
        x = x.reshape(batch, heads, head_dim)
        b, c = (np.repeat(v.reshape(batch, groups, state), heads // groups, axis=1) for v in (b, c))
        step = np.clip(np.logaddexp(0.0, dt[:, t] + dt_bias), dt_min, dt_max)
        decay = np.exp(-np.exp(a_log.astype(np.float64)) * step)
        ssm = decay[:, :, None, None] * ssm + (step[:, :, None] * x)[..., None] * b[:, :, None, :]
        y[:, t] = ((ssm @ c[..., None])[..., 0] + d[:, None] * x).reshape(batch, inner)
    gated = (y * z * _sigmoid(z)).reshape(batch, length, groups, inner // groups)
    normed = gated / np.sqrt((gated**2).mean(-1, keepdims=True) + eps)
    return normed.reshape(batch, length, inner) * norm_weight, window[:, :, length:], ssm


def make_case(
    name: str,
    *,
    batch: int = 1,
    length: int = 5,
    heads: int = 4,
    head_dim: int = 16,
    groups: int = 2,
    state: int = 16,
    kernel: int = 4,
    dt_limits: tuple[float, float] = (0.0, 3.4e38),
    state_dtype: str = "float32",
) -> Case:
    """A case with random weights, inputs and carried states of the given sizes."""
    rng = random_of(name)
    inner = heads * head_dim
    conv_dim = inner + 2 * groups * state

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    inputs = {
        "proj": normal(batch, length, inner + conv_dim + heads),
        "conv_weight": normal(conv_dim, kernel) * np.float32(0.5),
        "conv_bias": normal(conv_dim) * np.float32(0.1),
        "dt_bias": rng.uniform(-5.0, -1.0, heads).astype(np.float32),
        "a_log": np.log(rng.uniform(1.0, 16.0, heads)).astype(np.float32),
        "d": normal(heads),
        "norm_weight": rng.uniform(0.5, 1.5, inner).astype(np.float32),
        "past_conv": normal(batch, conv_dim, kernel - 1),
        "past_ssm": normal(batch, heads, head_dim, state).astype(dtype_of(state_dtype)),
    }
    attributes = {
        "groups": groups,
        "conv_dim": conv_dim,
        "eps": 1e-5,
        "dt_min": dt_limits[0],
        "dt_max": dt_limits[1],
    }
    tolerances = {"present_ssm": STORED[state_dtype]} if state_dtype in STORED else {}
    return Case(name, inputs, attributes, tolerances=tolerances, kernel_only=length == 0)


STORED = {"float16": 2.0**-11 + 1e-4, "bfloat16": 2.0**-8 + 1e-4}
"""Largest relative error of a state that is rounded to this type."""


def make_cases() -> list[Case]:
    """Lengths around chunk sizes, few and none, the published head and state sizes, groups, batches, limits, storage.

    The long one has small time steps, as trained models do. With large ones the function body, for which it is one
    block, would sum rates up to thousands and be off by their float32 spacing (7.5e-5 of y's maximum seen).
    """
    cases = [
        make_case("step", length=1),
        make_case("two", length=2, batch=3),
        make_case("nothing", length=0, batch=2),
        make_case("few", length=8, batch=2),
        make_case("few-and-one", length=9),
        make_case("odd", length=127, groups=1),
        make_case("block", length=128),
        make_case("block-and-one", length=129, groups=4, batch=3, head_dim=8),
        make_case("long", length=1000, heads=2, head_dim=8, groups=1, dt_limits=(0.0, 0.01)),
        make_case("head-dim-64", heads=8, head_dim=64, groups=8, state=128, length=7),
        make_case("head-dim-80", heads=4, head_dim=80, groups=1, state=64, length=7),
        make_case("head-dim-80-step", heads=16, head_dim=80, groups=8, state=128, length=1, batch=3),
        make_case("head-dim-128", heads=2, head_dim=128, groups=2, state=128, length=130),
        make_case("state-64-step", heads=4, head_dim=64, groups=1, state=64, length=1),
        make_case("kernel-2", kernel=2),
        make_case("limits", dt_limits=(0.01, 0.1)),
        make_case("float16-state", length=6, state_dtype="float16"),
        make_case("float16-state-step", length=1, batch=2, head_dim=64, state=128, state_dtype="float16"),
        make_case("bfloat16-state", length=6, state_dtype="bfloat16"),
        make_case("bfloat16-state-step", length=1, batch=2, state_dtype="bfloat16"),
    ]
    for value in (math.nan, math.inf):
        for length in (1, 5):
            cases.append(poison(make_case(f"row-{length}", batch=3, length=length), 1, value, "proj"))
        cases.append(poison(make_case("row-states", batch=3), 1, value, "past_conv", "past_ssm"))
    return cases


MAMBA2_MIXER = Operator(
    name="Mamba2Mixer",
    doc=DOC,
    inputs=(
        "proj",
        "conv_weight",
        "conv_bias",
        "dt_bias",
        "a_log",
        "d",
        "norm_weight",
        "past_conv",
        "past_ssm",
    ),
    outputs=("y", "present_conv", "present_ssm"),
    attributes={"groups": int, "conv_dim": int, "eps": float, "dt_min": float, "dt_max": float},
    reference=reference,
    bodies={"": BODY},
    variant_of=lambda attributes, inputs: "",
    weights=frozenset({"conv_weight", "conv_bias", "dt_bias", "a_log", "d", "norm_weight"}),
    make_cases=make_cases,
)
