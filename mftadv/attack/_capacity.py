"""How many queries of a matrix-free network a task takes."""

from collections.abc import Callable
from typing import Any

from mftadv.attack._attack import Attack, named_attack
from mftadv.linear import jacobian_queries
from mftadv.network import Network, count_queries
from mftadv.spec import NetworkSpec, check_exponent


def capacity_for(
    spec: NetworkSpec,
    function: Callable[[Network], Any] | None = None,
    *,
    evaluate: int = 0,
    linear_representation: int = 0,
    adversarial_loss: int = 0,
    p: float = 2,
    attack: str | Attack = "default",
) -> tuple[int, int]:
    """The capacity that a matrix-free network needs for a task: how many inputs and cotangents it is queried with.

    The queries of a function of a network are counted in its program:

        loss = lambda net: mf.adversarial_loss(net, x, eps, 2, 2, key).value
        loss(mf.init(key, spec, engine="auto", capacity=mf.capacity_for(spec, loss)))

    Those of three functions of the library need no program. Each of the first three keywords names one and says for
    how many inputs it is called in all; the sum is for all of them, one after the other, on the network that each
    returns.

    Memory and time of a network grow as L N (inputs + cotangents) and as L N (inputs + cotangents)^2. At N = 10^5,
    L = 10 and one input, an attack by "frugal" (9 evaluations) needs about 1 GB. "default" (300 without its scored
    starts, which a matrix-free network leaves out) takes 28 times the memory and 99 times the time, measured at
    N = 1000 and L = 10: "frugal" is the preset for matrix-free networks.

    Args:
        spec: the law of the network.
        function: of a network, to arrays; it is traced once more. What it queries in a scan counts as often as the
            scan has steps, of a condition the branch with the most queries; vectors that were queried before count too.
        evaluate: number of inputs of `evaluate`.
        linear_representation: number of inputs of `linear_representation`.
        adversarial_loss: number of inputs of `adversarial_loss`.
        p: exponent of its perturbations.
        attack: its attack.

    Returns:
        (inputs, cotangents), for `init(..., engine="matrix_free", capacity=...)`.

    Raises:
        ValueError: a number is not an integer >= 0, p is below 1, there is no such attack, or the function queries the
            network in a while loop, whose length no program knows.

    Source: counting. J comes by rows where K <= d (K cotangents an input), else by columns (d + 1 more inputs).
    """
    numbers = {
        "evaluate": evaluate,
        "linear_representation": linear_representation,
        "adversarial_loss": adversarial_loss,
    }
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"{name}: expected an integer >= 0, got {number!r}")
    d, K = spec.input_dim, spec.output_dim
    columns, rows = jacobian_queries(d, K)
    differences, cotangents = named_attack(attack, check_exponent("p", p)).queries(d, K)
    each = ((1, 0), (1 + columns, rows), (1 + differences, cotangents))
    taken = [[number * side for side in pair] for number, pair in zip(numbers.values(), each, strict=True)]
    taken.append([0, 0] if function is None else [*count_queries(function, spec)])
    inputs, outputs = (sum(side) for side in zip(*taken, strict=True))
    return inputs, outputs
