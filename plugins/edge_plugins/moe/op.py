"""``edge::MoE``: routing as in Nemotron 3 and DeepSeek-V3, or by softmax, and the chosen experts' weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_plugins.operator import Array, Case, Operator, dtype_of, poison, random_of
from edge_plugins.qlinear.op import dequantize, random_integers

DOC = """y = sum over the chosen experts e of weight_e * down_e(activation(up_e(x))).

activation: "relu2" is max(u, 0)^2; "gelu" is u (1 + erf(u / sqrt 2)) / 2; "silu_gated" is SiLU(gate) * u, where
up_weight holds [gate | u] side by side.

scores = sigmoid(router_logits), or softmax(router_logits) over all experts, as scoring says. Experts are ranked by
scores + correction_bias: the topk_group best of n_group groups (a group's rank is the sum of its two best), in these
the top_k best experts. Their weights are the uncorrected scores, divided by their sum + 1e-20 if norm_topk_prob,
times routed_scaling_factor (DeepSeek-V3, arXiv 2412.19437, equations 12 to 16). A softmax over the chosen experts'
logits alone, as Granite 4.0 has it, is scoring "softmax" with norm_topk_prob.

Inputs: x (batch, length, width); router_logits (batch, length, experts); correction_bias (experts);
up_weight (experts, width, intermediate), twice as wide when gated; down_weight (experts, intermediate, width).
Float: the weights are float32 or bfloat16. Quantised: int4 or int8, with up_scales
(experts, width / block_size, intermediate) and down_scales (experts, intermediate / block_size, width).
Output: y (batch, length, width).
"""

ACTIVATIONS = {
    "relu2": """
    positive = Relu (risen)
    active = Mul (positive, positive)
""",
    "gelu": """
    root_half = Constant <value_float = 0.70710678118654752> ()
    bent = Mul (risen, root_half)
    half = Constant <value_float = 0.5> ()
    sign = Erf (bent)
    share = Mul (sign, half)
    passed = Add (share, half)
    active = Mul (risen, passed)
""",
    "silu_gated": """
    gate, straight = Split <axis = -1, num_outputs = 2> (risen)
    gate_sigmoid = Sigmoid (gate)
    gate_silu = Mul (gate, gate_sigmoid)
    active = Mul (gate_silu, straight)
""",
}

SCORINGS = {
    "sigmoid": """
    scores = Sigmoid (router_logits)
""",
    "softmax": """
    scores = Softmax <axis = -1> (router_logits)
""",
}

ROUTING = """
    choice = Add (scores, correction_bias)

    zero = Constant <value_ints = [0]> ()
    minus_one = Constant <value_ints = [-1]> ()
    n_group = Constant <value_int: int = @n_group> ()
    n_group_1d = Unsqueeze (n_group, zero)
    tokens = Shape <end = 2> (choice)
    experts = Shape <start = 2> (choice)
    group_experts = Div (experts, n_group_1d)
    by_group = Concat <axis = 0> (tokens, n_group_1d, group_experts)
    grouped = Reshape <allowzero = 1> (choice, by_group)
    two = Constant <value_ints = [2]> ()
    best = Min (two, group_experts)
    best_two, best_two_at = TopK <axis = 3> (grouped, best)
    rank = ReduceSum <keepdims = 0> (best_two, minus_one)
    topk_group = Constant <value_int: int = @topk_group> ()
    topk_group_1d = Unsqueeze (topk_group, zero)
    group_values, group_at = TopK <axis = 2> (rank, topk_group_1d)
    rank_shape = Shape (rank)
    group_at_shape = Shape (group_at)
    dropped_groups = ConstantOfShape <value = float[1] {0.0}> (rank_shape)
    chosen_groups = ConstantOfShape <value = float[1] {1.0}> (group_at_shape)
    group_mask = ScatterElements <axis = 2> (dropped_groups, group_at, chosen_groups)
    group_mask_wide = Unsqueeze (group_mask, minus_one)
    kept = Cast <to = 9> (group_mask_wide)
    lowest = Constant <value_float = -3.4e38> ()
    kept_choice = Where (kept, grouped, lowest)
    flat_shape = Shape (choice)
    masked_choice = Reshape <allowzero = 1> (kept_choice, flat_shape)

    top_k = Constant <value_int: int = @top_k> ()
    top_k_1d = Unsqueeze (top_k, zero)
    chosen_values, chosen = TopK <axis = 2> (masked_choice, top_k_1d)
    raw = GatherElements <axis = 2> (scores, chosen)
    raw_sum = ReduceSum <keepdims = 1> (raw, minus_one)
    tiny = Constant <value_float = 1e-20> ()
    raw_total = Add (raw_sum, tiny)
    norm = Constant <value_int: int = @norm_topk_prob> ()
    normalise = Cast <to = 9> (norm)
    one = Constant <value_float = 1.0> ()
    divisor = Where (normalise, raw_total, one)
    shares = Div (raw, divisor)
    scale = Constant <value_float: float = @routed_scaling_factor> ()
    chosen_weights = Mul (shares, scale)
    no_weights = ConstantOfShape <value = float[1] {0.0}> (flat_shape)
    weights = ScatterElements <axis = 2> (no_weights, chosen, chosen_weights)
"""

RISE = """
    one_axis = Constant <value_ints = [1]> ()
    x_shared = Unsqueeze (x, one_axis)
    risen = MatMul (x_shared, up_matrix)
"""

FALL = """
    fallen = MatMul (active, down_matrix)
    weights_by_expert = Transpose <perm = [0, 2, 1]> (weights)
    weights_wide = Unsqueeze (weights_by_expert, minus_one)
    weighted = Mul (fallen, weights_wide)
    y = ReduceSum <keepdims = 0> (weighted, one_axis)
"""

FLOAT = """
    up_matrix = Cast <to = 1> (up_weight)
    down_matrix = Cast <to = 1> (down_weight)
"""

QUANTIZED = """
    up_matrix = DequantizeLinear <axis = 1, block_size: int = @block_size> (up_weight, up_scales)
    down_matrix = DequantizeLinear <axis = 1, block_size: int = @block_size> (down_weight, down_scales)
"""

BODIES = {
    prefix + ("" if scoring == "sigmoid" else f"{scoring}-") + name: scores + ROUTING + matrices + RISE + active + FALL
    for prefix, matrices in (("", FLOAT), ("quantized-", QUANTIZED))
    for scoring, scores in SCORINGS.items()
    for name, active in ACTIVATIONS.items()
}


def score(router_logits: Array, scoring: str) -> Array:
    """What ranks one token's experts, (experts), in float64."""
    logits = router_logits.astype(np.float64)
    if scoring == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-logits)))
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


def activate(risen: Array, activation: str) -> Array:
    """What stands between an expert's two products, (width) -> (intermediate)."""
    if activation == "relu2":
        return np.asarray(np.maximum(risen, 0.0) ** 2)
    if activation == "gelu":
        return np.asarray(risen * [0.5 * (1 + math.erf(value / math.sqrt(2))) for value in risen])
    gate, straight = np.split(risen, 2)
    return np.asarray(gate / (1 + np.exp(-gate)) * straight)


def reference(
    *,
    x: Array,
    router_logits: Array,
    correction_bias: Array,
    up_weight: Array,
    down_weight: Array,
    top_k: int,
    n_group: int,
    topk_group: int,
    norm_topk_prob: int,
    routed_scaling_factor: float,
    activation: str,
    scoring: str = "sigmoid",
    up_scales: Array | None = None,
    down_scales: Array | None = None,
    block_size: int = 0,
) -> tuple[Array, ...]:
    """Token by token, expert by expert, in float64."""
    if up_scales is not None and down_scales is not None:
        up_weight = dequantize(up_weight, up_scales, block_size)
        down_weight = dequantize(down_weight, down_scales, block_size)
    y = np.zeros(x.shape, dtype=np.float64)
    for index in np.ndindex(*x.shape[:-1]):
        scores = score(router_logits[index], scoring)
        choice = (scores + correction_bias).reshape(n_group, -1)
        rank = np.sort(choice, axis=-1)[:, -2:].sum(-1)
        dropped = np.argsort(-rank, kind="stable")[topk_group:]
        choice[dropped] = -np.inf
        chosen = np.argsort(-choice.ravel(), kind="stable")[:top_k]
        weights = scores[chosen] / (scores[chosen].sum() + 1e-20 if norm_topk_prob else 1.0)
        for expert, weight in zip(chosen, weights * routed_scaling_factor):
            risen = x[index].astype(np.float64) @ up_weight[expert].astype(np.float64)
            y[index] += weight * (activate(risen, activation) @ down_weight[expert].astype(np.float64))
    return (y,)


def make_case(
    name: str,
    lead: tuple[int, int],
    experts: int,
    *,
    weights: str = "float32",
    width: int = 64,
    intermediate: int = 96,
    block_size: int = 32,
    activation: str = "relu2",
    **attributes: int | float | str,
) -> Case:
    """A case with random weights stored as float32, bfloat16, int8 or int4; ``lead`` is (batch, length)."""
    rng = random_of(name)
    gated = 2 if activation == "silu_gated" else 1
    shapes = {"up": (experts, width, gated * intermediate), "down": (experts, intermediate, width)}
    inputs: dict[str, Array] = {
        "x": rng.standard_normal((*lead, width), dtype=np.float32),
        "router_logits": rng.standard_normal((*lead, experts), dtype=np.float32),
        "correction_bias": rng.uniform(-0.3, 0.3, experts).astype(np.float32),
    }
    for part, shape in shapes.items():
        if weights.startswith("int"):
            inputs[f"{part}_weight"] = random_integers(rng, int(weights.removeprefix("int")), shape)
            scales = rng.uniform(0.005, 0.02, (shape[0], shape[1] // block_size, shape[2]))
            inputs[f"{part}_scales"] = scales.astype(np.float32)
        else:
            values = (rng.standard_normal(shape) * shape[1] ** -0.5).astype(np.float32)
            inputs[f"{part}_weight"] = values.astype(dtype_of(weights))
    defaults: dict[str, int | float | str] = {
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": 1,
        "routed_scaling_factor": 1.0,
        "scoring": "sigmoid",
    }
    stored = {"block_size": block_size} if weights.startswith("int") else {}
    all_attributes = {"activation": activation} | defaults | attributes | stored
    return Case(name, inputs, all_attributes, variant_of(all_attributes, len(inputs)), kernel_only=0 in lead)


def make_cases() -> list[Case]:
    """One, many and no tokens, every routing setting and activation, every way of storing, idle experts."""
    cases = [
        make_case("one-token", (1, 1), 8, top_k=2),
        make_case("batch", (3, 5), 8, top_k=3, routed_scaling_factor=2.5),
        make_case("groups", (2, 6), 12, top_k=3, n_group=4, topk_group=2),
        make_case("single-expert-groups", (2, 6), 4, top_k=2, n_group=4, topk_group=3),
        make_case("unnormalised", (2, 4), 8, top_k=2, norm_topk_prob=0),
        make_case("softmax", (3, 5), 8, top_k=3, scoring="softmax", activation="silu_gated"),
        make_case("softmax-groups", (2, 6), 12, top_k=3, n_group=4, topk_group=2, scoring="softmax"),
        make_case("softmax-unnormalised", (1, 40), 40, top_k=5, norm_topk_prob=0, scoring="softmax", activation="gelu"),
        make_case("softmax-int4", (1, 1), 8, top_k=2, scoring="softmax", weights="int4", activation="silu_gated"),
        make_case("all-experts", (1, 3), 4, top_k=4),
        make_case("most-experts-idle", (1, 3), 32, top_k=1),
        make_case("one-expert", (1, 2), 1, top_k=1),
        make_case("long", (1, 1000), 6, top_k=2, width=32, intermediate=24),
        make_case("int8", (2, 3), 8, top_k=2, weights="int8"),
        make_case("int8-block64", (1, 129), 4, top_k=2, weights="int8", width=128, intermediate=64, block_size=64),
        make_case("int4", (1, 4), 8, top_k=2, weights="int4", n_group=2, topk_group=1),
        make_case("int4-block128", (1, 1), 4, top_k=2, weights="int4", width=128, intermediate=256, block_size=128),
        make_case("int4-long", (1, 127), 8, top_k=3, weights="int4"),
        make_case("no-tokens", (2, 0), 4, top_k=2),
        make_case("no-tokens-int4", (1, 0), 4, top_k=2, weights="int4"),
    ]
    for activation in ACTIVATIONS:
        for weights in ("bfloat16", "int8", "int4"):
            name = f"{activation}-{weights}"
            cases.append(make_case(name, (2, 3), 6, top_k=2, weights=weights, activation=activation))
        cases.append(make_case(f"{activation}-step", (1, 1), 6, top_k=2, activation=activation))
    for value in (math.nan, math.inf):
        case = make_case("softmax-row", (4, 1), 6, top_k=2, scoring="softmax")
        cases.append(poison(case, 2, value, "x", "router_logits"))
        for weights in ("float32", "int4"):
            case = make_case(f"row-{weights}", (4, 1), 6, top_k=2, weights=weights)
            cases.append(poison(case, 2, value, "x", "router_logits"))
    return cases


def variant_of(attributes: Mapping[str, Any], inputs: int) -> str:
    """The activation, behind ``softmax-`` if that is how scores are made and ``quantized-`` if weights are integers."""
    scoring = str(attributes.get("scoring", "sigmoid"))
    prefix = ("quantized-" if "block_size" in attributes else "") + ("" if scoring == "sigmoid" else f"{scoring}-")
    return prefix + str(attributes["activation"])


MOE = Operator(
    name="MoE",
    doc=DOC,
    inputs=("x", "router_logits", "correction_bias", "up_weight", "down_weight"),
    outputs=("y",),
    attributes={
        "top_k": int,
        "n_group": int,
        "topk_group": int,
        "norm_topk_prob": int,
        "routed_scaling_factor": float,
        "activation": str,
        "scoring": str,
        "block_size": int,
    },
    reference=reference,
    bodies=BODIES,
    variant_of=variant_of,
    variant_inputs={name: ("up_scales", "down_scales") for name in BODIES if name.startswith("quantized-")},
    weights=frozenset({"correction_bias", "up_weight", "down_weight", "up_scales", "down_scales"}),
    selectors=frozenset({"activation", "scoring"}),
    make_cases=make_cases,
)
