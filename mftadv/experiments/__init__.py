"""The paper's claims as experiments, and the runner of all of them."""

from mftadv.experiments._experiment import Experiment
from mftadv.experiments._runner import Budget, Result, merge, run, show
from mftadv.experiments.finite_width import FiniteWidth
from mftadv.experiments.jacobian_law import JacobianLaw
from mftadv.experiments.loss_bounds import LossBounds
from mftadv.experiments.sweep_file import SweepFile

EXPERIMENTS = {kind.name: kind for kind in (JacobianLaw, LossBounds, FiniteWidth)}

__all__ = [
    "EXPERIMENTS",
    "Budget",
    "Experiment",
    "FiniteWidth",
    "JacobianLaw",
    "LossBounds",
    "Result",
    "SweepFile",
    "merge",
    "run",
    "show",
]
