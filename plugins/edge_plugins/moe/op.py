"""``edge::MoE``: sigmoid routing as in Nemotron 3 and DeepSeek-V3, and the chosen experts' weighted sum."""

from __future__ import annotations

import numpy as np

from edge_plugins.operator import Array, Case, Operator
from edge_plugins.qlinear.op import dequantize

DOC = """y = sum over the chosen experts e of weight_e * down_e(relu(up_e(x))^2).

scores = sigmoid(router_logits). Experts are ranked by scores + correction_bias: the topk_group best of n_group
groups (a group's rank is the sum of its two best), in these the top_k best experts. Their weights are the
uncorrected scores, divided by their sum + 1e-20 if norm_topk_prob, times routed_scaling_factor
(DeepSeek-V3, arXiv 2412.19437, equations 12 to 16).

Inputs: x (batch, length, width); router_logits (batch, length, experts); correction_bias (experts);
up_weight (experts, width, intermediate); down_weight (experts, intermediate, width). Quantised: the weights
are int4 or int8, with up_scales (experts, width / block_size, intermediate) and down_scales
(experts, intermediate / block_size, width). Output: y (batch, length, width).
"""

ROUTING = """
    scores = Sigmoid (router_logits)
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

EXPERTS = """
    one_axis = Constant <value_ints = [1]> ()
    x_shared = Unsqueeze (x, one_axis)
    risen = MatMul (x_shared, up_matrix)
    positive = Relu (risen)
    squared = Mul (positive, positive)
    fallen = MatMul (squared, down_matrix)
    weights_by_expert = Transpose <perm = [0, 2, 1]> (weights)
    weights_wide = Unsqueeze (weights_by_expert, minus_one)
    weighted = Mul (fallen, weights_wide)
    y = ReduceSum <keepdims = 0> (weighted, one_axis)
"""

FLOAT = """
    up_matrix = Identity (up_weight)
    down_matrix = Identity (down_weight)
"""

QUANTIZED = """
    up_matrix = DequantizeLinear <axis = 1, block_size: int = @block_size> (up_weight, up_scales)
    down_matrix = DequantizeLinear <axis = 1, block_size: int = @block_size> (down_weight, down_scales)
"""


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
        scores = 1 / (1 + np.exp(-router_logits[index].astype(np.float64)))
        choice = (scores + correction_bias).reshape(n_group, -1)
        rank = np.sort(choice, axis=-1)[:, -2:].sum(-1)
        dropped = np.argsort(-rank, kind="stable")[topk_group:]
        choice[dropped] = -np.inf
        chosen = np.argsort(-choice.ravel(), kind="stable")[:top_k]
        weights = scores[chosen] / (scores[chosen].sum() + 1e-20 if norm_topk_prob else 1.0)
        for expert, weight in zip(chosen, weights * routed_scaling_factor):
            risen = np.maximum(x[index].astype(np.float64) @ up_weight[expert], 0.0)
            y[index] += weight * (risen**2 @ down_weight[expert])
    return (y,)


def _case(name: str, seed: int, lead: tuple[int, int], experts: int, bits: int = 0, **attributes: int | float) -> Case:
    rng = np.random.default_rng(seed)
    width, intermediate, block_size = 64, 96, 32
    shapes = {"up": (experts, width, intermediate), "down": (experts, intermediate, width)}
    inputs = {
        "x": rng.standard_normal((*lead, width), dtype=np.float32),
        "router_logits": rng.standard_normal((*lead, experts), dtype=np.float32),
        "correction_bias": rng.uniform(-0.3, 0.3, experts).astype(np.float32),
    }
    for part, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32) * shape[1] ** -0.5
        inputs[f"{part}_weight"] = values.astype(np.float32)
        if bits:
            limit = 2 ** (bits - 1)
            inputs[f"{part}_weight"] = rng.integers(-limit, limit, shape).astype(np.int8)
    for part, (_, rows, columns) in shapes.items() if bits else ():
        inputs[f"{part}_scales"] = rng.uniform(0.005, 0.02, (experts, rows // block_size, columns)).astype(np.float32)
    defaults = {"n_group": 1, "topk_group": 1, "norm_topk_prob": 1, "routed_scaling_factor": 1.0}
    return Case(
        name, inputs, defaults | attributes | ({"block_size": block_size} if bits else {}), "quantized" if bits else ""
    )


def make_cases() -> list[Case]:
    """One and several tokens, every routing setting switched on once, both integer widths."""
    return [
        _case("one-token", 0, (1, 1), experts=8, top_k=2),
        _case("batch", 1, (3, 5), experts=8, top_k=3, routed_scaling_factor=2.5),
        _case("groups", 2, (2, 6), experts=12, top_k=3, n_group=4, topk_group=2),
        _case("single-expert-groups", 3, (2, 6), experts=4, top_k=2, n_group=4, topk_group=3),
        _case("unnormalised", 4, (2, 4), experts=8, top_k=2, norm_topk_prob=0),
        _case("all-experts", 5, (1, 3), experts=4, top_k=4),
        _case("int8", 7, (2, 3), experts=8, top_k=2, bits=8),
        _case("int4", 8, (1, 4), experts=8, top_k=2, bits=4, n_group=2, topk_group=1),
    ]


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
        "block_size": int,
    },
    reference=reference,
    bodies={"": ROUTING + FLOAT + EXPERTS, "quantized": ROUTING + QUANTIZED + EXPERTS},
    variant_of=lambda attributes: "quantized" if "block_size" in attributes else "",
    variant_inputs={"quantized": ("up_scales", "down_scales")},
    make_cases=make_cases,
)
