"""All operators by name."""

from edge_plugins.cached_attention.op import CACHED_ATTENTION
from edge_plugins.mamba2_mixer.op import MAMBA2_MIXER
from edge_plugins.moe.op import MOE
from edge_plugins.operator import Operator
from edge_plugins.qlinear.op import QLINEAR

OPERATORS: dict[str, Operator] = {
    operator.name: operator for operator in (MAMBA2_MIXER, CACHED_ATTENTION, MOE, QLINEAR)
}
