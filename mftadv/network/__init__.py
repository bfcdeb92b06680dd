"""Random ReLU-like networks: drawing one, its forward pass, differences, pullback and pushforward."""

from mftadv.network._evaluate import (
    Evaluation,
    apply,
    at_rows,
    backward,
    backward_pair,
    check_input,
    difference,
    evaluate,
    forward,
    forward_pair,
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
    "at_rows",
    "backward",
    "backward_pair",
    "check_input",
    "count_queries",
    "difference",
    "engine_costs",
    "engine_for",
    "evaluate",
    "forward",
    "forward_pair",
    "init",
    "inner_programs",
    "pullback",
    "pushforward",
]
