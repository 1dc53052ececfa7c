"""``edge::CachedAttention``: causal grouped-query attention over a cache of fixed capacity."""

from __future__ import annotations

import math

import numpy as np

from edge_plugins.operator import Array, Case, Operator, poison, random_of

DOC = """Causal grouped-query attention that adds its keys and values to a cache and attends to what is stored there.

Row b of the cache holds past_length[b] positions. The new keys and values go to positions past_length[b] to
past_length[b] + length - 1; all else of the cache is passed through as it is. The query at position p of a row sees
the keys up to p, with window > 0 only p - window + 1 to p, as they are stored, that is after rounding, so that one
call over T positions equals T calls over one. Whatever lies beyond a row's last position, NaN or infinity too, does
not change y.

    y = softmax(scale * query key^T) value, in float32; heads / kv_heads neighbouring query heads share a key head

Inputs: query (batch, length, heads * head_dim); key, value (batch, length, kv_heads * head_dim), float32;
past_length (batch) int64; past_key, past_value (batch, kv_heads, capacity, head_dim). past_length + length may not
exceed capacity: the caller sees to it, the body then fails or ignores the surplus, and a kernel raises an error.
Outputs: y (batch, length, heads * head_dim) float32; present_key and present_value, shaped and stored as the past
ones. Attributes: scale; window, 0 for no limit.

Variant "": the cache is float32 or float16. Variant "int8": it is int8, with past_key_scale and past_value_scale
(batch, kv_heads, capacity) float32. A row of head_dim values is stored with scale = max |value| / 127, or 1 where
that is 0 in float32, and as round(value / scale), ties to even, within -127 to 127, all in float32. A row that holds
NaN or infinity has no finite scale, and its integers are not specified.
"""

INPUTS = ("query", "key", "value", "past_length", "past_key", "past_value")
SCALE_INPUTS = ("past_key_scale", "past_value_scale")
OUTPUTS = ("y", "present_key", "present_value")
SCALE_OUTPUTS = ("present_key_scale", "present_value_scale")

HEADS = """
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    minus_one = Constant <value_ints = [-1]> ()
    batch = Shape <start = 0, end = 1> (query)
    length = Shape <start = 1, end = 2> (query)
    kv_heads = Shape <start = 1, end = 2> (past_key)
    head_dim = Shape <start = 3, end = 4> (past_key)
    query_width = Shape <start = 2, end = 3> (query)
    key_width = Mul (kv_heads, head_dim)
    group_heads = Div (query_width, key_width)
    key_shape = Concat <axis = 0> (batch, length, kv_heads, head_dim)
    key_by_time = Reshape <allowzero = 1> (key, key_shape)
    key_by_head = Transpose <perm = [0, 2, 1, 3]> (key_by_time)
    value_by_time = Reshape <allowzero = 1> (value, key_shape)
    value_by_head = Transpose <perm = [0, 2, 1, 3]> (value_by_time)

    start = Unsqueeze (past_length, one)
    zero_value = Constant <value_int = 0> ()
    one_value = Constant <value_int = 1> ()
    length_value = Squeeze (length, zero)
    step = Range (zero_value, length_value, one_value)
    position = Add (start, step)
    row_axes = Constant <value_ints = [1, 3]> ()
    position_wide = Unsqueeze (position, row_axes)
    new_shape = Shape (key_by_head)
    place = Expand (position_wide, new_shape)
    longest = ReduceMax <keepdims = 1> (past_length, zero)
    total = Add (longest, length)
"""

STORE_FLOAT = """
    key_stored = CastLike (key_by_head, past_key)
    value_stored = CastLike (value_by_head, past_value)
    present_key = ScatterElements <axis = 2> (past_key, place, key_stored)
    present_value = ScatterElements <axis = 2> (past_value, place, value_stored)
    key_used = Slice (present_key, zero, total, two)
    value_used = Slice (present_value, zero, total, two)
    key_read = Cast <to = 1> (key_used)
    value_read = Cast <to = 1> (value_used)
"""

_STORE_INT8 = """
    PART_size = Abs (PART_by_head)
    PART_largest = ReduceMax <keepdims = 1> (PART_size, minus_one)
    PART_ratio = Div (PART_largest, steps)
    PART_empty = Equal (PART_ratio, nothing)
    PART_scale = Where (PART_empty, unit, PART_ratio)
    PART_divided = Div (PART_by_head, PART_scale)
    PART_rounded = Round (PART_divided)
    PART_clipped = Clip (PART_rounded, lower, steps)
    PART_stored = Cast <to = 3> (PART_clipped)
    present_PART = ScatterElements <axis = 2> (past_PART, place, PART_stored)
    PART_scale_stored = Squeeze (PART_scale, minus_one)
    present_PART_scale = ScatterElements <axis = 2> (past_PART_scale, scale_place, PART_scale_stored)
    PART_used = Slice (present_PART, zero, total, two)
    PART_scale_used = Slice (present_PART_scale, zero, total, two)
    PART_scale_wide = Unsqueeze (PART_scale_used, minus_one)
    PART_integers = Cast <to = 1> (PART_used)
    PART_read = Mul (PART_integers, PART_scale_wide)
"""

STORE_INT8 = (
    """
    steps = Constant <value_float = 127.0> ()
    lower = Constant <value_float = -127.0> ()
    nothing = Constant <value_float = 0.0> ()
    unit = Constant <value_float = 1.0> ()
    scale_shape = Shape <end = 3> (key_by_head)
    scale_position = Unsqueeze (position, one)
    scale_place = Expand (scale_position, scale_shape)
"""
    + _STORE_INT8.replace("PART", "key")
    + _STORE_INT8.replace("PART", "value")
)

ATTEND = """
    total_value = Squeeze (total, zero)
    place_read = Range (zero_value, total_value, one_value)
    end = Add (start, length)
    held = Less (place_read, end)
    held_axes = Constant <value_ints = [1, 3]> ()
    held_wide = Unsqueeze (held, held_axes)
    blank = Constant <value_float = 0.0> ()
    keys = Where (held_wide, key_read, blank)
    values = Where (held_wide, value_read, blank)

    query_shape = Concat <axis = 0> (batch, length, kv_heads, group_heads, head_dim)
    query_by_time = Reshape <allowzero = 1> (query, query_shape)
    query_by_head = Transpose <perm = [0, 2, 3, 1, 4]> (query_by_time)
    group_rows = Mul (group_heads, length)
    rows_shape = Concat <axis = 0> (batch, kv_heads, group_rows, head_dim)
    query_rows = Reshape <allowzero = 1> (query_by_head, rows_shape)
    keys_across = Transpose <perm = [0, 1, 3, 2]> (keys)
    products = MatMul (query_rows, keys_across)
    scale = Constant <value_float: float = @scale> ()
    scores_flat = Mul (products, scale)
    scores_shape = Concat <axis = 0> (batch, kv_heads, group_heads, length, total)
    scores = Reshape <allowzero = 1> (scores_flat, scores_shape)

    window = Constant <value_int: int = @window> ()
    unlimited = Equal (window, zero_value)
    far = Constant <value_int = 4611686018427387904> ()
    reach = Where (unlimited, far, window)
    position_column = Unsqueeze (position, two)
    distance = Sub (position_column, place_read)
    not_later = GreaterOrEqual (distance, zero_value)
    not_lost = Less (distance, reach)
    visible = And (not_later, not_lost)
    visible_axes = Constant <value_ints = [1, 2]> ()
    visible_wide = Unsqueeze (visible, visible_axes)
    lowest = Constant <value_float = -3.4e38> ()
    scores_visible = Where (visible_wide, scores, lowest)
    shares = Softmax <axis = -1> (scores_visible)
    shares_shape = Concat <axis = 0> (batch, kv_heads, group_rows, total)
    shares_flat = Reshape <allowzero = 1> (shares, shares_shape)
    mixed_rows = MatMul (shares_flat, values)
    mixed_shape = Concat <axis = 0> (batch, kv_heads, group_heads, length, head_dim)
    mixed = Reshape <allowzero = 1> (mixed_rows, mixed_shape)
    mixed_by_time = Transpose <perm = [0, 3, 1, 2, 4]> (mixed)
    y_shape = Shape (query)
    y = Reshape <allowzero = 1> (mixed_by_time, y_shape)
"""

STEPS = np.float32(127)


def quantize_rows(values: Array) -> tuple[Array, Array]:
    """Rows (..., head_dim) as int8 and their scales (...), in float32 as every implementation must do it."""
    ratio = np.abs(values).max(-1, keepdims=True, initial=0) / STEPS
    scale = np.where(ratio == 0, np.float32(1), ratio)
    integers = np.clip(np.round(values / scale), -STEPS, STEPS).astype(np.int8)
    return integers, scale[..., 0]


def reference(
    *,
    query: Array,
    key: Array,
    value: Array,
    past_length: Array,
    past_key: Array,
    past_value: Array,
    scale: float,
    window: int,
    past_key_scale: Array | None = None,
    past_value_scale: Array | None = None,
) -> tuple[Array, ...]:
    """Row by row and position by position; the softmax and the sums in float64."""
    batch, length, _ = query.shape
    _, kv_heads, _, head_dim = past_key.shape
    stored: list[Array] = []
    scales: list[Array] = []
    read: list[Array] = []
    for new, past, past_scale in ((key, past_key, past_key_scale), (value, past_value, past_value_scale)):
        by_head = new.reshape(batch, length, kv_heads, head_dim).transpose(0, 2, 1, 3)
        present = past.copy()
        rounded, new_scale = (by_head.astype(past.dtype), None) if past_scale is None else quantize_rows(by_head)
        present_scale = None if past_scale is None else past_scale.copy()
        for row, start in enumerate(past_length):
            present[row, :, start : start + length] = rounded[row]
            if present_scale is not None and new_scale is not None:
                present_scale[row, :, start : start + length] = new_scale[row]
        stored.append(present)
        read.append(present.astype(np.float64))
        if present_scale is not None:
            scales.append(present_scale)
            read[-1] *= present_scale.astype(np.float64)[..., None]
    y = np.zeros((batch, length, kv_heads, query.shape[2] // (kv_heads * head_dim), head_dim))
    queries = query.astype(np.float64).reshape(y.shape)
    for row, step, head in np.ndindex(batch, length, kv_heads):
        end = int(past_length[row]) + step + 1
        seen = slice(max(0, end - window) if window else 0, end)
        scores = scale * queries[row, step, head] @ read[0][row, head, seen].T
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        y[row, step, head] = shares / shares.sum(-1, keepdims=True) @ read[1][row, head, seen]
    return (y.reshape(query.shape), *stored, *scales)


def make_case(
    name: str,
    *,
    past_length: tuple[int, ...] = (5,),
    length: int = 3,
    kv_heads: int = 2,
    group_heads: int = 4,
    head_dim: int = 16,
    spare: int = 4,
    window: int = 0,
    cache: str = "float32",
) -> Case:
    """A case with one row per entry of ``past_length`` and ``spare`` positions of NaN behind the longest row."""
    rng = random_of(name)
    batch, capacity = len(past_length), max(past_length) + length + spare
    width = kv_heads * head_dim

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    inputs: dict[str, Array] = {
        "query": 2 * normal(batch, length, width * group_heads),
        "key": normal(batch, length, width),
        "value": normal(batch, length, width),
        "past_length": np.array(past_length, np.int64),
    }
    unused = np.arange(capacity) >= np.array(past_length)[:, None]  # (batch, capacity)
    for part in ("key", "value"):
        past = normal(batch, kv_heads, capacity, head_dim)
        if cache == "int8":
            inputs[f"past_{part}"], scales = quantize_rows(past)
            inputs[f"past_{part}_scale"] = np.where(unused[:, None], np.float32(np.nan), scales)
        else:
            inputs[f"past_{part}"] = np.where(unused[:, None, :, None], np.float32(np.nan), past).astype(cache)
    exact = dict.fromkeys(OUTPUTS[1:] + SCALE_OUTPUTS, 0.0)
    attributes = {"scale": head_dim**-0.5, "window": window}
    return Case(name, inputs, attributes, "int8" if cache == "int8" else "", exact, kernel_only=length == 0)


def make_cases() -> list[Case]:
    """Every kind of cache, steps and blocks, uneven rows, windows, the published head sizes and query groups."""
    cases = [
        make_case("first-step", past_length=(0,), length=1, spare=0),
        make_case("first-block", past_length=(0, 0), length=7),
        make_case("uneven-rows", past_length=(0, 9, 4), length=5),
        make_case("uneven-steps", past_length=(17, 1, 8), length=1),
        make_case("no-tokens", past_length=(3, 1), length=0),
        make_case("full-cache", past_length=(6, 6), spare=0),
        make_case("one-head", kv_heads=1, group_heads=1),
        make_case("queries-16", kv_heads=1, group_heads=16, head_dim=64, past_length=(2, 30, 11), length=4),
        make_case("queries-1", kv_heads=4, group_heads=1, head_dim=80, past_length=(127,), length=2),
        make_case("head-dim-128", kv_heads=2, group_heads=4, head_dim=128, past_length=(128, 3), length=1),
        make_case("length-127", past_length=(2,), length=127, cache="float16"),
        make_case("length-128", past_length=(0, 60), length=128, kv_heads=1),
        make_case("length-129", past_length=(1,), length=129, head_dim=64, cache="int8"),
        make_case("long", past_length=(0,), length=1000, kv_heads=1, group_heads=2),
        make_case("long-past", past_length=(2000, 700), length=1, head_dim=64, cache="float16"),
        make_case("long-past-int8", past_length=(1500,), length=2, head_dim=128, cache="int8"),
        make_case("window-1", window=1),
        make_case("window-steps", past_length=(40, 3, 15), length=1, window=16),
        make_case("window-block", past_length=(0, 13), length=50, window=16),
        make_case("window-wide", past_length=(9,), window=4096, cache="int8"),
    ]
    for cache in ("float16", "int8"):
        cases += [
            make_case(f"{cache}-step", past_length=(8, 0, 21), length=1, head_dim=80, cache=cache),
            make_case(f"{cache}-block", past_length=(3, 10), length=20, head_dim=64, cache=cache),
            make_case(f"{cache}-window", past_length=(30, 2), length=9, window=12, cache=cache),
            make_case(f"{cache}-no-tokens", past_length=(3, 1), length=0, cache=cache),
        ]
    zeros = make_case("int8-zeros", cache="int8")
    for part in ("key", "value"):
        zeros.inputs[part][:, 1] = 0.0
        zeros.inputs[part][:, 2] = 1e-44
    cases.append(zeros)
    for value in (math.nan, math.inf):
        for cache in ("float32", "float16", "int8"):
            case = make_case(f"row-{cache}", past_length=(4, 6, 2), cache=cache)
            cases.append(poison(case, 1, value, "query", "key", "value"))
    return cases


CACHED_ATTENTION = Operator(
    name="CachedAttention",
    doc=DOC,
    inputs=INPUTS,
    outputs=OUTPUTS,
    attributes={"scale": float, "window": int},
    reference=reference,
    bodies={"": HEADS + STORE_FLOAT + ATTEND, "int8": HEADS + STORE_INT8 + ATTEND},
    variant_of=lambda attributes, inputs: "int8" if inputs == len(INPUTS + SCALE_INPUTS) else "",
    variant_inputs={"int8": SCALE_INPUTS},
    variant_outputs={"int8": SCALE_OUTPUTS},
    weights=frozenset(),
    make_cases=make_cases,
)
