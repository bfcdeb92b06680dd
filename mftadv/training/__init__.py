"""Adversarial training of one network: a pure init and step over an optax transformation, and a record in time."""

from mftadv.training._config import LOSSES, TrainingConfig, check_data
from mftadv.training._step import State, init, step
from mftadv.training._train import Training, TrainingRecord, begin, check_both, queries_of_training, segment, train

__all__ = [
    "LOSSES",
    "State",
    "Training",
    "TrainingConfig",
    "TrainingRecord",
    "begin",
    "check_both",
    "check_data",
    "init",
    "queries_of_training",
    "segment",
    "step",
    "train",
]
