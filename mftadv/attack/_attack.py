"""Attacks: starts and rules put together, and the presets."""

import dataclasses
from typing import Any

import numpy as np

from mftadv.attack._pieces import Ascent, LinearStarts, PowerMethod, RandomStarts, Vertices
from mftadv.linear import jacobian_queries
from mftadv.spec import check_positive


@dataclasses.dataclass(frozen=True)
class Attack:
    """Starts, whose candidates go through the same rules, one rule after the other.

    The pieces of `mftadv.attack`: `LinearStarts`, `RandomStarts` and `Vertices` start, `PowerMethod` and `Ascent` are
    rules. Any frozen dataclass with their methods is one. With `rounds` > 1 so many starts that follow one another
    share a place: the first is tried for `trial` steps by the first rule, the next by the next rule, and the last of
    these rules and all that follow go on from the best that came of it. A short search from many starts tells better
    where to go on than their values do, and which rule searches best depends on the function.
    """

    starts: tuple[Any, ...]
    rules: tuple[Any, ...]
    rounds: int = 1
    trial: int = 7

    def __post_init__(self):
        for name in ("starts", "rules"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one piece, got none")
        check_positive("rounds", self.rounds)
        check_positive("trial", self.trial)
        if (count := sum(piece.count for piece in self.starts)) % self.rounds or self.rounds > len(self.rules):
            raise ValueError(
                f"rounds: expected a divisor of {count} starts, and a rule for each, got {self.rounds} for "
                f"{len(self.rules)} rules"
            )
        if self.rounds > 1 and self.trial > (steps := min(rule.steps for rule in self.rules[: self.rounds])):
            raise ValueError(f"trial: expected at most the {steps} steps of a rule, got {self.trial}")

    def schedule(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each evaluation the rule that follows it, its number by this rule, and the start it is at, -1 for none.

        The last evaluation is followed by a move that is not evaluated: one loop compiles to half the code of two.
        """
        trials = [(i, self.trial) for i in range(self.rounds)] if self.rounds > 1 else []
        runs = [*trials, *((i, self.rules[i].steps) for i in range(self.rounds - 1, len(self.rules)))]
        which = np.concatenate([np.full(steps, i) for i, steps in runs])
        number = np.concatenate([np.arange(steps) for _, steps in runs])
        begins = (number == 0) & (np.arange(len(number)) < max(1, len(trials) * self.trial))
        at_start = np.where(begins, np.cumsum(begins) - 1, -1)
        return np.append(which, which[-1]), np.append(number, number[-1]), np.append(at_start, -1)

    def queries(self, input_dim: int, output_dim: int) -> tuple[int, int]:
        """How many differences and how many cotangents it takes at one input."""
        places = sum(piece.count for piece in self.starts) // self.rounds
        evaluations = places * len(self.schedule()[0])
        jacobian = jacobian_queries(input_dim, output_dim) if self.uses_jacobian else (0, 0)
        parts = [(evaluations, evaluations), jacobian, *(piece.queries(input_dim) for piece in self.starts)]
        differences, cotangents = (sum(side) for side in zip(*parts, strict=True))
        return differences, cotangents

    @property
    def uses_jacobian(self) -> bool:
        """Whether it takes J(x), once for all starts."""
        return any(piece.uses_jacobian for piece in self.starts)


def named_attack(attack: str | Attack, p: float) -> Attack:
    """The attack of that name for perturbations in the p-norm.

    Raises:
        ValueError: there is no such attack.
    """
    if isinstance(attack, Attack):
        return attack
    if attack == "frugal":
        return Attack((LinearStarts(1),), (PowerMethod(2), Ascent(6)))
    starts = (Vertices(4), LinearStarts()) if p == 1 else (LinearStarts(),)
    if attack == "thorough":
        return Attack((*starts, RandomStarts(31, among=33), RandomStarts(31)), (Ascent(60),))
    if attack == "default" and p == 1:
        return Attack((*starts, RandomStarts(2, among=32)), (Ascent(24),))
    if attack == "default":
        return Attack((*starts, RandomStarts(6, among=10)), (PowerMethod(7), Ascent(24)), rounds=2)
    raise ValueError(f'attack: expected "frugal", "default", "thorough" or an Attack, got {attack!r}')
