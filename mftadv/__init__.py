"""The mean-field theory of adversarial training, in JAX: random networks, closed forms, one held against the other.

The public names, in the order of the stages: each stage imports only those above it.
"""

import os
import signal
import sys

__version__ = "0.1.0"  # the only place: pyproject.toml reads it from here

# Run as a command, this may be interrupted while all of it is imported: it ends at once then, without a traceback.
_is_command = os.path.basename((sys.argv or [""])[0]) in ("-m", "mftadv")
_handler = signal.signal(signal.SIGINT, lambda *_: os._exit(130)) if _is_command else None

from mftadv.spec import NetworkSpec
from mftadv import theory
from mftadv import statistics
from mftadv.compare import Claim, judge
from mftadv.matrices import DenseMatrix, MatrixFree
from mftadv.network import Network, apply, evaluate, init
from mftadv.linear import LinearRepresentation, linear_representation
from mftadv.norms import OperatorNorm, exact_operator_norm, operator_norm, vector_norm
from mftadv.attack import (
    AdversarialLoss,
    Attack,
    ExactLoss,
    adversarial_loss,
    capacity_for,
    exact_adversarial_loss,
)
from mftadv.data import load_inputs
from mftadv.sweep import monte_carlo, sweep
from mftadv.training import TrainingConfig, TrainingRecord, train
from mftadv.experiments import run

if _is_command:
    signal.signal(signal.SIGINT, _handler)

__all__ = [
    "NetworkSpec",
    "theory",
    "statistics",
    "Claim",
    "judge",
    "DenseMatrix",
    "MatrixFree",
    "Network",
    "init",
    "apply",
    "evaluate",
    "LinearRepresentation",
    "linear_representation",
    "OperatorNorm",
    "exact_operator_norm",
    "operator_norm",
    "vector_norm",
    "AdversarialLoss",
    "Attack",
    "ExactLoss",
    "adversarial_loss",
    "capacity_for",
    "exact_adversarial_loss",
    "load_inputs",
    "monte_carlo",
    "sweep",
    "TrainingConfig",
    "TrainingRecord",
    "train",
    "run",
]
