"""Random ReLU-like networks: drawing one, its forward pass, differences, pullback and pushforward."""

from mftadv.network._evaluate import (
    Evaluation,
    apply,
    backward,
    backward_pair,
    check_input,
    difference,
    evaluate,
    forward,
    pullback,
    pushforward,
)
from mftadv.network._init import Frozen, Network, Params, engine_costs, engine_for, init

__all__ = [
    "Evaluation",
    "Frozen",
    "Network",
    "Params",
    "apply",
    "backward",
    "backward_pair",
    "check_input",
    "difference",
    "engine_costs",
    "engine_for",
    "evaluate",
    "forward",
    "init",
    "pullback",
    "pushforward",
]
