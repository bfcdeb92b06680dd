"""The paper's second claim: the bound eps beta_{p,q} omega^{L/2} on the adversarial loss of a random network.

This attacks many networks, and holds what the attack reaches, a lower value of the loss, against the bound of each
kind, which is of the loss from above: attack <= loss <= bound, where a bound deserves its name.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mftadv import statistics, theory
from mftadv.attack import (
    Attack,
    adversarial_loss,
    capacity_for,
    named_attack,
)
from mftadv.compare import Claim
from mftadv.experiments.distribution import SPREAD, exponent, growth_along_input
from mftadv.network import init
from mftadv.norms import operator_norm
from mftadv.spec import NetworkSpec

__all__ = ["CONFIDENCE", "Sample", "Statistic", "attack_for", "cell", "claims", "exponent", "predictions"]

KINDS = ("published", "leading", "chevet", "sharp")
CONFIDENCE = 0.99  # of the bound that one network obeys

# How far |J| may grow inside the ball: the loss exceeds eps |J(x)| by a part of this size, and no coefficient knows.
_GROWTH = 0.05


class Sample(NamedTuple):
    """What is kept of n networks at B inputs for one size (without the leading n of a single network's)."""

    loss: Float[Any, "n B"]
    norm: Float[Any, "n B"]  # |J(x)|_{p->q}, from below where it is NP-hard
    converged: Any  # [n, B]
    nonfinite: Any  # [n, B]
    law_exact: Any  # [n]


def attack_for(engine: str, attack: str, p: float) -> Attack:
    """The attack of that name; for "default" the frugal one where networks are matrix-free and their cost is square."""
    return named_attack("frugal" if (engine, attack) == ("matrix_free", "default") else attack, p)


@dataclasses.dataclass(frozen=True)
class Statistic:
    """The statistic `Sample` of one network; a value, so that equal ones share a compiled program.

    Every size has the network of the same key, asked anew: the law at each size is exact, that of differences between
    sizes is so for dense networks alone.
    """

    p: float
    q: float
    attack: Attack
    engine: str

    def __call__(
        self, key: Key[Array, ""], spec: NetworkSpec, xs: Float[Array, "B d"], eps: Float[Array, ""]
    ) -> Sample:
        room = capacity_for(spec, adversarial_loss=len(xs), attack=self.attack)
        network = init(key, spec, self.engine, room if self.engine == "matrix_free" else None)
        found = adversarial_loss(network, xs, eps, self.p, self.q, key, self.attack)
        norm = operator_norm(found.jacobian, self.p, self.q, key).lower
        return Sample(found.value, norm, found.converged, found.nonfinite, jnp.asarray(found.law_exact))


def cell(
    spec: NetworkSpec, predicted: Mapping[str, float], eps: float, p: float, q: float, sample: Sample
) -> dict[str, Any]:
    """What was measured beside what is predicted, as a record.

    Args:
        spec: the law, with concrete leaves.
        predicted: see `predictions`.
        eps: size of the perturbation.
        p: exponent of the perturbation's norm.
        q: exponent of the output's norm.
        sample: of the networks.
    """
    loss = np.asarray(sample.loss, np.float64)
    estimate = statistics.mean_estimate(loss)
    return {
        "p": exponent(p), "q": exponent(q), "eps": float(eps), "d": spec.input_dim, "K": spec.output_dim,
        "loss": estimate.value, "standard_error": estimate.standard_error,
        "quantiles": dict(zip(("05", "50", "95"), np.quantile(loss, (0.05, 0.5, 0.95)).tolist(), strict=True)),
        "eps_norm": float(eps * np.mean(sample.norm, dtype=np.float64)),
        **{name: value if math.isfinite(value) else None for name, value in predicted.items()},
        "tightness": estimate.value / predicted["chevet"] if predicted["chevet"] else None,
        "converged": float(np.mean(sample.converged)),
        "nonfinite": int(np.sum(sample.nonfinite)), "law_exact": bool(np.all(sample.law_exact)),
    }  # fmt: skip


def claims(
    spec: NetworkSpec,
    xs: Float[np.ndarray, "B d"],
    predicted: Mapping[str, float],
    eps: float,
    p: float,
    q: float,
    sample: Sample,
) -> dict[str, Claim]:
    """The claims "chevet" and, where there is one, "published": the loss is at most that bound.

    Chevet's is of infinite width, where |J| has its least mean: the claim is about this width. A loss that the float
    type cannot tell from 0 to its own precision says nothing of a bound: it counts as not measured.
    """
    excess = 0.0 if spec.output_dim == 1 else float(theory.norm_correction(spec)[1])
    grows = "|J| grows a little inside the ball"
    growth = max(growth_along_input(spec, x, p, q) for x in xs)
    loss, limits = np.asarray(sample.loss, np.float64), np.finfo(np.asarray(sample.loss).dtype)
    resolved = predicted["chevet"] * float(limits.eps) > float(limits.tiny)
    measured = statistics.mean_estimate(loss if resolved else loss[:0])
    name = f"L_adv {exponent(p)}->{exponent(q)}, d={spec.input_dim}, K={spec.output_dim}, eps={eps:g}"
    # a candidate that broke down is not in the loss, which may be the lower for it
    nonfinite = measured.nonfinite + int(np.sum(sample.nonfinite))
    options = {"kind": "at_most", "allowance": _GROWTH, "reason": grows, "nonfinite": nonfinite}
    note = "with the growth along x" if growth else ""
    bound = predicted["at_width"] + eps * growth
    found = {"chevet": Claim.of(f"{name}, Chevet at this width", bound, measured, note=note, **options)}
    if "published" in predicted:
        # the norm of one row is below that of all: where the mean itself is not known, it stands in
        least = predicted["sharp"] if "sharp" in predicted else float(_bound(spec, eps, p, 1.0, "sharp", rows=1))
        published = predicted["published"]
        holds = published >= 0.99 * least and not growth
        options |= {"scale": least, "expected": "holds" if holds else "fails"}
        allowed = (_GROWTH + excess, f"{grows}; {SPREAD}" if spec.output_dim > 1 else grows) if holds else (0.0, "")
        options |= dict(zip(("allowance", "reason"), allowed, strict=True))
        note = "" if holds else "the published coefficient is no upper bound here"
        found["published"] = Claim.of(f"{name}, published", published, measured, note=note, **options)
    return found


def predictions(spec: NetworkSpec, xs: Float[np.ndarray, "B d"], eps: float, p: float, q: float) -> dict[str, float]:
    """The bound of each kind that has a coefficient, at this width, at a confidence; and one step's loss."""
    found: dict[str, float] = {}
    norm = math.sqrt(float(np.mean(np.sum(xs**2, axis=-1))))
    ways: dict[str, Callable[[], Array]] = {
        **{kind: partial(_bound, spec, eps, p, q, kind) for kind in KINDS},
        "at_width": lambda: _bound(spec, eps, p, q, "chevet") * (1 + theory.chevet_excess(spec, p, q)),
        "confident": lambda: theory.adversarial_loss_bound(spec, eps, p, q, confidence=CONFIDENCE),
        "one_step": lambda: theory.one_step_loss(spec, eps, norm, p, q),
    }
    for name, way in ways.items():
        # not every pair, block and shape has every prediction
        with jax.enable_x64(True), contextlib.suppress(ValueError):
            found[name] = float(way())
    return found


def _bound(spec: NetworkSpec, eps: Any, p: float, q: float, kind: str, rows: int | None = None) -> Array:
    spec = dataclasses.replace(spec, output_dim=rows) if rows else spec
    return theory.adversarial_loss_bound(spec, eps, p, q, kind=kind)
