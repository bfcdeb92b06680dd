"""Attacks: starts and rules put together, and the presets."""

import dataclasses

import numpy as np

from mftadv.attack._pieces import Rule, Start
from mftadv.attack._rules import Ascent, PowerMethod, SteepestAscent
from mftadv.attack._starts import LinearStarts, OutputStarts, RandomStarts, Vertices
from mftadv.linear import jacobian_queries


@dataclasses.dataclass(frozen=True)
class Attack:
    """Starts, all of whose candidates go through the same rules, one rule after the other.

    The starts of `mftadv.attack` are `LinearStarts`, `RandomStarts`, `OutputStarts` and `Vertices`, its rules
    `PowerMethod`, `SteepestAscent` and `Ascent`; `Start` and `Rule` say what one of your own provides.

    Raises:
        ValueError: the starts are no tuple of at least one `Start`, or the rules none of at least one `Rule`.
    """

    starts: tuple[Start, ...]
    rules: tuple[Rule, ...]

    def __post_init__(self):
        for name, kind in (("starts", Start), ("rules", Rule)):
            pieces = getattr(self, name)
            if not isinstance(pieces, tuple) or not pieces or not all(isinstance(piece, kind) for piece in pieces):
                raise ValueError(f"{name}: expected a tuple of at least one {kind.__name__} instance, got {pieces!r}")

    def schedule(self) -> tuple[np.ndarray, np.ndarray]:
        """For each evaluation but the last the rule that follows it, and the number of the step by this rule."""
        which = np.concatenate([np.full(rule.steps, i) for i, rule in enumerate(self.rules)])
        return which, np.concatenate([np.arange(rule.steps) for rule in self.rules])

    @property
    def count(self) -> int:
        """How many candidates it has at each input."""
        return sum(piece.count for piece in self.starts)

    def queries(self, input_dim: int, output_dim: int, starts: int | None = None) -> tuple[int, int]:
        """How many differences and how many cotangents it takes at one input, from its own starts or so many others."""
        count, steps = starts or self.count, len(self.schedule()[0])
        own = count * (steps + 1), count * steps
        if starts is not None:
            return own
        jacobian = jacobian_queries(input_dim, output_dim) if self.uses_jacobian else (0, 0)
        parts = [own, jacobian, *(piece.queries(input_dim) for piece in self.starts)]
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
    if attack == "fast":
        return Attack((RandomStarts(1),), (SteepestAscent(5),))
    starts = (Vertices(4), LinearStarts()) if p == 1 else (LinearStarts(),)
    if attack == "thorough":
        return Attack((*starts, RandomStarts(31, among=33), RandomStarts(31)), (Ascent(60),))
    if attack == "default" and p == 1:
        return Attack((*starts, RandomStarts(2, among=32)), (Ascent(24),))
    if attack == "default":
        return Attack((*starts, OutputStarts(10, among=10)), (SteepestAscent(24),))
    raise ValueError(f'attack: expected "frugal", "fast", "default", "thorough" or an Attack, got {attack!r}')
