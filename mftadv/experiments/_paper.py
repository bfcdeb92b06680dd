"""The registry of claims: what the paper says and what this project found, and which runs measure it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from mftadv.experiments._experiment import Experiment
from mftadv.experiments.capacity import Capacity
from mftadv.experiments.finite_width import FiniteWidth
from mftadv.experiments.jacobian_law import JacobianLaw
from mftadv.experiments.loss_bounds import LossBounds
from mftadv.experiments.supremum import Supremum
from mftadv.experiments.train import Train
from mftadv.experiments.trainability import Trainability
from mftadv.experiments.training_law import TrainingLaw

Scale = Literal["quick", "full"]


class Part(NamedTuple):
    """Those claims of a run that have this id, and coordinates among these."""

    run: str
    id: str
    coords: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class PaperClaim:
    """A claim of the paper, or ours.

    Attributes:
        name: on the command line.
        statement: what the paper says, in a line; for ours what we say.
        parts: which claims of which runs measure it.
        picture: run and figure that show it.
        found: what was found beyond it.
        ours: it is not the paper's.
    """

    name: str
    statement: str
    parts: tuple[Part, ...]
    picture: tuple[str, str]
    found: str
    ours: bool = False

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs it needs."""
        return tuple(dict.fromkeys(part.run for part in self.parts))

    def __str__(self) -> str:
        return f"{self.name:18}{'(ours) ' * self.ours}{self.statement}"


def _parts(run: str, *ids: str, **coords: Any) -> tuple[Part, ...]:
    return tuple(Part(run, id, coords) for id in ids)


_ON_LADV = {"data": "gaussian", "input_dim": 64, "standard_loss": "none"}

# For each run the experiment of each scale and its number of networks, None for as many as the experiment plans. All
# quick ones together take less than ten minutes on two cores, most of it compiling; the full ones are for one GPU.
RUNS: dict[str, dict[str, tuple[Experiment, int | None]]] = {
    "law": {
        "quick": (JacobianLaw(width=200, depth=3, output_dim=4, weight_variance=1.6), None),
        "full": (
            JacobianLaw(
                data="gaussian", input_dim=1000, width=5000, depth=10, output_dim=10, weight_variance=1.6, inputs=4
            ),
            20_000,
        ),
    },
    "signed": {
        "quick": (
            JacobianLaw(block="signed", width=200, depth=4, weight_variance=0.4, inputs=1),
            None,
        ),
        "full": (JacobianLaw(block="signed", width=2000, depth=10, weight_variance=0.4), 50_000),
    },
    "residual": {
        "quick": (
            JacobianLaw(
                block="residual", width=64, depth=3, weight_variance=1.0, bias_variance=0.05, inputs=1, output_dim=2
            ),
            None,
        ),
        "full": (JacobianLaw(block="residual", width=1000, depth=10, weight_variance=0.5, output_dim=2), 50_000),
    },
    "bounds": {
        "quick": (
            LossBounds(
                data="gaussian", input_dim=16, width=100, depth=3, eps=(0.1, 1.0), dims=(16, 64), outputs=(4, 16)
            ),
            64,
        ),
        "full": (
            LossBounds(
                width=2000, depth=10, output_dim=10, dims=(16, 64, 256, 1024), outputs=(1, 4, 16, 64), attack="thorough"
            ),
            256,
        ),
    },
    "supremum": {
        "quick": (Supremum(), None),
        "full": (Supremum(dims=(16, 64, 256, 1024), depth=3, starts=16, steps=200), None),
    },
    "width": {
        "quick": (FiniteWidth(widths=(1000, 1_000_000), depth=3), None),
        "full": (FiniteWidth(), None),
    },
    "train": {
        "quick": (
            Train(**_ON_LADV, inputs=8, width=256, depth=3, eps=0.3, learning_rate=0.002, steps=120, evaluations=60),
            32,
        ),
        "full": (
            Train(**_ON_LADV, inputs=8, width=1000, depth=5, eps=0.3, learning_rate=0.001, steps=400, evaluations=200),
            512,
        ),
    },
    "training-law": {
        "quick": (TrainingLaw(widths=(125, 250, 500), depths=(1,), angles=(0.3,), steps=16), None),
        "full": (TrainingLaw(widths=(250, 500, 1000, 2000, 4000, 100_000), input_dim=100), None),
    },
    "trainability": {
        "quick": (Trainability(quick=True, blocks=("vanilla", "residual")), None),
        "full": (Trainability(), None),
    },
    "capacity": {
        "quick": (
            Capacity(**_ON_LADV, inputs=8, widths=(64, 128, 256), depth=3, eps=0.3, steps=60, evaluations=10),
            40,
        ),
        "full": (
            Capacity(**_ON_LADV, inputs=8, widths=(128, 256, 512, 1024, 2048), depth=5, eps=0.3, evaluations=20),
            256,
        ),
    },
}

CLAIMS = (
    PaperClaim(
        "gaussian",
        "The entries of J(x) and a(x) of a random network are centred Gaussian numbers of variance omega^L / d and "
        "alpha b2 (1 + omega + ... + omega^(L-1)), whatever the input x.",
        _parts(
            "law", "jacobian_mean", "jacobian_variance", "jacobian_variance_along_input", "jacobian_law",
            "jacobian_kurtosis", "shift_mean", "shift_variance",
        ),
        ("law", "jacobian_law"),
        "The variances are exact at every width. The Gaussian law is one of infinite width: at width N the kurtosis of "
        "an entry is 3 (1 + 2/N) (1 + c/N)^L, and that is what is measured.",
    ),
    PaperClaim(
        "independent",
        "The entries of J are independent of each other and of a.",
        _parts(
            "law", "pair_correlation", "pair_square", "jacobian_shift_correlation", "jacobian_shift_square_correlation"
        ),
        ("law", "jacobian_law"),
        "At finite width they are uncorrelated and yet not independent: they share the scale of their network, so that "
        "their squares are correlated, by as much as theory says.",
    ),
    PaperClaim(
        "propagation",
        "A layer multiplies the variance of J by omega = alpha s in vanilla networks, by 1 + alpha s with shortcuts.",
        (*_parts("law", "jacobian_variance"), *_parts("signed", "jacobian_variance", "jacobian_variance_along_input")),
        ("signed", "jacobian_law"),
        "With shortcuts this is exact where signs of the branches are random (signed), which is our addition; for "
        "residual networks see the claim residual.",
    ),
    PaperClaim(
        "bound",
        "For each p and q the adversarial loss max |f(x + eta) - f(x)|_q over |eta|_p <= eps is at most "
        "eps beta_{p,q} omega^(L/2).",
        _parts("bounds", "loss_chevet", part=("inputs",)),
        ("bounds", "loss"),
        "With the coefficient by Chevet's inequality this holds for every p and q in [1, inf], d and K.",
    ),
    PaperClaim(
        "tightness",
        "The bound is tight: the norm of J, which small perturbations reach, is beta_{p,q} omega^(L/2).",
        _parts("signed", "norm_sharp"),
        ("signed", "jacobian_law"),
        "With the sharp coefficient this is an equation, once what the width N takes from the norm is counted. How "
        "close an attack comes to Chevet's bound is in the ratios of the claim bound.",
    ),
    PaperClaim(
        "input-dimension",
        "The adversarial loss depends on the input dimension d as the bound does.",
        (*_parts("bounds", "trend", of=("d",)), *_parts("bounds", "loss_chevet", part=("d", "d K"))),
        ("bounds", "dimensions"),
        "At a fixed mean square of x it falls with d for p = 1, tends to a constant for p = 2, and rises for p = inf: "
        "that the loss falls with d is true for p = 1 alone.",
    ),
    PaperClaim(
        "output-dimension",
        "The adversarial loss rises with the output dimension K.",
        (*_parts("bounds", "trend", of=("K",)), *_parts("bounds", "loss_chevet", part=("K", "d K"))),
        ("bounds", "dimensions"),
        "It does for every p, as the bound does.",
    ),
    PaperClaim(
        "one-step",
        "Where adversarial training starts the weight variance of every layer falls at the rate "
        "2 eps beta_{p,q} omega^(L/2) / N.",
        _parts("train", "slope"),
        ("train", "training"),
        "It does with the sharp coefficient, once what the width N takes from the mean norm of J is counted. That each "
        "step changes each single network by its own loss is exact, see the claim identity.",
    ),
    PaperClaim(
        "early",
        "Early in adversarial training the weight variance follows its closed form s(t).",
        _parts("train", "closed_form", evaluation=("first",)),
        ("train", "training"),
        "It does within its horizon, a fraction of the time t* in which the adversarial loss itself falls.",
    ),
    PaperClaim(
        "weight-variance",
        "Adversarial training lowers the weight variance, by the closed form s(t), at a rate of 1/N.",
        _parts("train", "closed_form", evaluation=("last",)),
        ("train", "training"),
        "It falls, but later far more slowly than by the closed form, which takes the loss to fall with omega^(L/2) "
        "alone: the weights also turn, and the loss falls much faster. See the claim identity.",
    ),
    PaperClaim(
        "horizon",
        "The closed form s(t) overstates the fall of the variance by a tenth after its validity horizon, about "
        ".3 to .4 t* for one input, t* the time of about 1/N in which the adversarial loss itself falls.",
        (*_parts("training-law", "horizon"), *_parts("train", "horizon")),
        ("training-law", "training_law"),
        "It does, to a fifth, for one input; several inputs, and gates that are few, make it last longer than that.",
        ours=True,
    ),
    PaperClaim(
        "training-curve",
        "Trained on L_adv alone, L_adv falls within a time t* of about 1/N along one curve of t/t*, at first by a half "
        "per t*, and the variance by O(1/N^2) in all.",
        _parts(
            "training-law", "slope", "slope_fixed", "slope_published", "exponent", "exponent_fixed",
            "exponent_published", "variance_published",
        ),
        ("training-law", "training_law"),
        "The curve is derived for gates that stay and many that flip, lambda < .5 and n/d > 30, and claimed there "
        "alone: most practical networks are outside.",
        ours=True,
    ),
    PaperClaim(
        "depth",
        "Deep vanilla networks cannot be trained adversarially, though they can be trained.",
        _parts("trainability", "trend", of=("depth", "adversarial")),
        ("trainability", "trainability"),
        "The trend is there; for its mechanism see the claim mechanism.",
    ),
    PaperClaim(
        "shortcuts",
        "Networks with shortcuts can be trained adversarially at depths at which vanilla ones cannot.",
        _parts("trainability", "trend", of=("residual", "signed")),
        ("trainability", "trainability"),
        "They can, residual as well as signed ones.",
    ),
    PaperClaim(
        "width",
        "Width mends it: wider vanilla networks are trainable at larger depths, and their weight variance falls at a "
        "rate of 1/N.",
        (
            *_parts("trainability", "trend", of=("width",)),
            *_parts("capacity", "exponent_propagation", training=("adversarial",)),
        ),
        ("capacity", "capacity"),
        "The rate is 1/N where the adversarial loss is all that is trained on.",
    ),
    PaperClaim(
        "capacity",
        "Adversarial training lowers the network capacity, the Fisher-Rao norm, with omega^L; width slows it.",
        _parts("capacity", "end_propagation", "end_capacity", "exponent_capacity"),
        ("capacity", "capacity"),
        "omega^L falls at a rate of 1/N; the Fisher-Rao norm over |dL/df|^2 does not go with it, since the weights "
        "turn as well.",
    ),
    PaperClaim(
        "coefficients",
        "The published coefficients of the bound are leading orders of many outputs: they are no bounds at few.",
        (*_parts("bounds", "loss_published"), *_parts("law", "norm_published")),
        ("bounds", "loss"),
        "The (inf, 2) coefficient sqrt(2 ln K / d) is no norm at all: it is 0 at K = 1.",
        ours=True,
    ),
    PaperClaim(
        "supremum",
        "The bound is about a typical input. The largest norm of J over all inputs behaves like |g|_2 for p < 2, g [d] "
        "standard normal, and exceeds the typical one, like |g|_{p*}, by a factor that grows with d; for p >= 2 by a "
        "constant one (Dirksen et al., arXiv 2506.19695).",
        _parts("supremum", "order", "order_typical"),
        ("supremum", "supremum"),
        "A search finds the supremum from below: the factor may be larger than what was found. That the supremum goes "
        "as the typical norm at p = 1 fails, as predicted.",
        ours=True,
    ),
    PaperClaim(
        "residual",
        "Residual networks break the law of J along x, where skip and branch correlate; a recursion has what holds.",
        _parts(
            "residual", *(
                f"{quantity}_{kind}"
                for quantity in (
                    "jacobian_variance", "jacobian_variance_along_input", "shift_variance", "along_shift_correlation"
                )
                for kind in ("published", "corrected")
            ),
        ),
        ("residual", "jacobian_law"),
        "It is one direction of d; random signs of the branches restore the law, see the claim propagation.",
        ours=True,
    ),
    PaperClaim(
        "finite-width",
        "At every width N the kurtosis of J and the shortfall of its mean length have exact laws, up to a million.",
        _parts("width", "excess_kurtosis", "shortfall", "coefficient_error"),
        ("width", "finite_width"),
        "All corrections are of order L/N: the theory of infinite width is right when the width exceeds the depth by "
        "far.",
        ours=True,
    ),
    PaperClaim(
        "identity",
        "An exact identity ties the change of each weight matrix's norm to the losses of the moment.",
        _parts("train", "identity"),
        ("train", "training"),
        "It holds at any width, radius and step, for every single network.",
        ours=True,
    ),
    PaperClaim(
        "mechanism",
        "The paper's mechanism does not explain the trend: where vanilla networks fail to train, omega^L of their "
        "weights has hardly moved.",
        _parts("trainability", "mechanism"),
        ("trainability", "trainability"),
        "The claim that omega^L is below m there fails, as predicted.",
        ours=True,
    ),
)  # fmt: skip
