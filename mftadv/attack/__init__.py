"""The adversarial loss: from below by attacks, exactly on tiny networks."""

from mftadv.attack._attack import Attack, named_attack
from mftadv.attack._capacity import capacity_for
from mftadv.attack._exact import ExactLoss, exact_adversarial_loss
from mftadv.attack._loss import AdversarialLoss, adversarial_loss, attacked_from
from mftadv.attack._pieces import Candidates, Objective, Problem, Rule, Start
from mftadv.attack._rules import Ascent, PowerMethod, SteepestAscent
from mftadv.attack._starts import LinearStarts, OutputStarts, RandomStarts, Vertices

__all__ = [
    "AdversarialLoss",
    "Ascent",
    "Attack",
    "Candidates",
    "ExactLoss",
    "LinearStarts",
    "Objective",
    "OutputStarts",
    "PowerMethod",
    "Problem",
    "RandomStarts",
    "Rule",
    "Start",
    "SteepestAscent",
    "Vertices",
    "adversarial_loss",
    "attacked_from",
    "capacity_for",
    "exact_adversarial_loss",
    "named_attack",
]
