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
from mftadv.network._queries import count_queries, inner_programs

__all__ = [
    "Evaluation",
    "Frozen",
    "Network",
    "Params",
    "apply",
    "backward",
    "backward_pair",
    "check_input",
    "count_queries",
    "difference",
    "engine_costs",
    "engine_for",
    "evaluate",
    "forward",
    "init",
    "inner_programs",
    "pullback",
    "pushforward",
]
