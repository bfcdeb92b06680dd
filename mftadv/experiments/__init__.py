"""The paper's claims as experiments, and the runner of all of them."""

from mftadv.experiments._experiment import Experiment
from mftadv.experiments._reproduce import Reproduction, paper_claims, reproduce
from mftadv.experiments._runner import Budget, Result, merge, run, show
from mftadv.experiments.capacity import Capacity
from mftadv.experiments.finite_width import FiniteWidth
from mftadv.experiments.jacobian_law import JacobianLaw
from mftadv.experiments.loss_bounds import LossBounds
from mftadv.experiments.supremum import Supremum
from mftadv.experiments.sweep_file import SweepFile
from mftadv.experiments.train import Train
from mftadv.experiments.trainability import Trainability
from mftadv.experiments.training_law import TrainingLaw

_KINDS = (JacobianLaw, LossBounds, Supremum, FiniteWidth, Train, TrainingLaw, Trainability, Capacity)
EXPERIMENTS = {kind.name: kind for kind in _KINDS}

__all__ = [
    "EXPERIMENTS",
    "Budget",
    "Capacity",
    "Experiment",
    "FiniteWidth",
    "JacobianLaw",
    "LossBounds",
    "Reproduction",
    "Result",
    "Supremum",
    "SweepFile",
    "Train",
    "Trainability",
    "TrainingLaw",
    "merge",
    "paper_claims",
    "reproduce",
    "run",
    "show",
]
