"""What training is: the losses, and the configuration."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from mftadv.attack import Attack, named_attack
from mftadv.spec import LARGEST, NetworkSpec, check_exponent, check_positive, concrete

TRAINABLE = ("weights", "biases", "readout")
ADVERSARIAL = ("paper", "madry")


def cross_entropy(outputs: Float[Array, "*B K"], targets: Float[Array, "*#B K"]) -> Float[Array, "*B"]:
    """-sum_k t_k ln softmax(f)_k; for one output and a target of +-1 it is the logistic loss ln(1 + exp(-t f)).

    Source: standard.
    """
    if outputs.shape[-1] == 1:
        return jax.nn.softplus(-targets * outputs)[..., 0]
    return -jnp.sum(targets * jax.nn.log_softmax(outputs, axis=-1), axis=-1)


def squared(outputs: Float[Array, "*B K"], targets: Float[Array, "*#B K"]) -> Float[Array, "*B"]:
    """|f - t|^2 / 2.

    Source: standard.
    """
    return jnp.sum((outputs - targets) ** 2, axis=-1) / 2


LOSSES: dict[str, Callable[[Array, Array], Array]] = {"cross_entropy": cross_entropy, "squared": squared}


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained: gradient descent on the mean over the inputs of a batch of

        "paper"    L_std(f(x)) + lambda max |f(x + eta) - f(x)|_q           (the paper's adversarial loss)
        "madry"    (1 - lambda) L_std(f(x)) + lambda max L_std(f(x + eta))  (adversarial training as usual: lambda = 1)
        None       L_std(f(x))

    with the maxima over |eta|_p <= eps found by an attack, anew at every step, and held fixed in the gradient.

    The class is a pytree whose leaves are `learning_rate`, `eps` and `adversarial_weight`: a sweep over them does not
    recompile.

    Args:
        steps: the number of steps, >= 1.
        learning_rate: of each step, > 0. The training time of theory is learning_rate times steps.
        eps: the radius of the ball, >= 0.
        p: exponent of the norm of eta, in [1, inf].
        q: exponent of the norm of the outputs' difference, in [1, inf].
        standard_loss: L_std: "cross_entropy", "squared" (see `LOSSES`), or None for none.
        adversarial: "paper", "madry" or None.
        adversarial_weight: lambda >= 0, for "madry" in [0, 1].
        batch_size: inputs of a step, drawn without replacement epoch by epoch; None for all.
        evaluate_every: steps between two evaluations; None for a tenth of all. Training is computed in segments of so
            many steps.
        attack: a name or an `Attack`, see `mftadv.adversarial_loss`. "fast" is 6 evaluations of the function.
        warm_start: whether each step of descent is one step of ascent of the perturbations, too, for which one
            evaluation of f and its gradient suffices: it trains at the worst of those that the last step left, and
            replaces each by the best response to its gradient (`PowerMethod`). The attack finds those of the first
            step, one from each of its starts, and those of the record. Only without batches.
        optimizer: a function of the learning rate to an optax `GradientTransformation`, such as `optax.adam`; None for
            plain gradient descent, which theory is about.
        trained: which parts change: "weights" W_l and "biases" b_l in the paper, "readout" P_out as well on demand.

    Raises:
        ValueError: an argument is outside its range, or there is nothing to train on.

    Source: Kumano et al. 2023, adversarial training of the random network; "madry": Madry et al. 2018.
    """

    steps: int
    learning_rate: Any
    eps: Any
    p: float = 2
    q: float = 2
    standard_loss: str | None = "cross_entropy"
    adversarial: str | None = "paper"
    adversarial_weight: Any = 1.0
    batch_size: int | None = None
    evaluate_every: Any = None  # an integer once constructed
    attack: str | Attack = "default"
    warm_start: bool = False
    optimizer: Callable[[Any], Any] | None = None
    trained: tuple[str, ...] = ("weights", "biases")

    def __post_init__(self):
        def set_to(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        set_to("steps", check_positive("steps", self.steps, LARGEST))
        if self.batch_size is not None:
            set_to("batch_size", check_positive("batch_size", self.batch_size))
        interval = -(-self.steps // 10) if self.evaluate_every is None else self.evaluate_every
        set_to("evaluate_every", check_positive("evaluate_every", interval, self.steps))
        for name in ("p", "q"):
            set_to(name, check_exponent(name, getattr(self, name)))
        if self.standard_loss not in (None, *LOSSES):
            raise ValueError(f"standard_loss: expected one of {', '.join(LOSSES)} or None, got {self.standard_loss!r}")
        if self.adversarial not in (None, *ADVERSARIAL):
            raise ValueError(f"adversarial: expected one of {', '.join(ADVERSARIAL)} or None, got {self.adversarial!r}")
        if self.standard_loss is None and self.adversarial != "paper":
            raise ValueError(f"standard_loss: expected a loss with adversarial={self.adversarial!r}, got None")
        most = 1 if self.adversarial == "madry" else math.inf
        _check_number("learning_rate", self.learning_rate, positive=True)
        _check_number("eps", self.eps)
        _check_number("adversarial_weight", self.adversarial_weight, most)
        for name in _LEAVES:  # an integer would be traced as one, which is no radius
            if isinstance(value := getattr(self, name), numbers.Real):
                set_to(name, float(value))
        named_attack(self.attack, self.p)
        if self.warm_start and (self.batch_size is not None or self.adversarial is None):
            got = f"batch_size={self.batch_size!r}, adversarial={self.adversarial!r}"
            raise ValueError(
                f"warm_start: expected an adversary and no batches, since each input has its own, got {got}"
            )
        parts = tuple(part for part in TRAINABLE if part in self.trained)
        if not isinstance(self.trained, tuple) or not parts or len(parts) != len(self.trained):
            raise ValueError(f"trained: expected a tuple of some of {', '.join(TRAINABLE)}, got {self.trained!r}")
        set_to("trained", parts)
        if self.optimizer is not None and not callable(self.optimizer):
            raise ValueError(
                f"optimizer: expected a function of the learning rate, as optax.adam, got {self.optimizer!r}"
            )

    @property
    def num_segments(self) -> int:
        """Evaluations: at the start, after every `evaluate_every` steps, and at the end."""
        return 1 + -(-self.steps // self.evaluate_every)

    @property
    def needs_labels(self) -> bool:
        return self.standard_loss is not None

    def tree_flatten_with_keys(self):
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in _LEAVES]
        return leaves, tuple(getattr(self, name) for name in _STATIC)

    @classmethod
    def tree_unflatten(cls, static, leaves):
        # Past the constructor: transformations rebuild configurations around tracers and None.
        config = object.__new__(cls)
        for name, value in (*zip(_STATIC, static, strict=True), *zip(_LEAVES, leaves, strict=True)):
            object.__setattr__(config, name, value)
        return config


_LEAVES = ("learning_rate", "eps", "adversarial_weight")
_STATIC = tuple(field.name for field in dataclasses.fields(TrainingConfig) if field.name not in _LEAVES)


def _check_number(name: str, value: Any, most: float = math.inf, positive: bool = False) -> None:
    known = concrete(value)
    if known is None:
        return
    expected = "a finite number > 0" if positive else "a finite number >= 0"
    expected = f"a number in [0, {most:g}]" if most < math.inf else expected
    try:
        valid = np.issubdtype(known.dtype, np.number) and np.all(np.isfinite(known))
    except TypeError:
        valid = False
    if not valid or np.any(known < 0) or np.any(known > most) or (positive and np.any(known == 0)):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


Data = tuple[ArrayLike, ArrayLike | None]


def check_data(name: str, spec: NetworkSpec, data: Any, config: TrainingConfig) -> tuple[Array, Array | None]:
    """The inputs [n, d] and the labels [n], or None where there are none, as arrays; what is traced is not checked.

    Raises:
        ValueError: the inputs are not [n, d], or the labels are missing where the loss needs them, not one an input,
            not integers, of more classes than the network has outputs, or all of one class.
    """
    if not isinstance(data, tuple) or len(data) != 2:
        raise ValueError(f"{name}: expected (x, y), inputs and labels, or (x, None), got {type(data).__name__}")
    x = jnp.asarray(data[0], float)
    if x.ndim != 2 or x.shape[1] != spec.input_dim or not len(x):
        raise ValueError(f"{name}: expected inputs [n, {spec.input_dim}], got shape {list(x.shape)}")
    if data[1] is None:
        if config.needs_labels:
            raise ValueError(f"{name}: expected labels, which standard_loss={config.standard_loss!r} needs, got None")
        return x, None
    y = jnp.asarray(data[1])
    if y.shape != (len(x),):
        raise ValueError(f"{name}: expected one label an input, [{len(x)}], got shape {list(y.shape)}")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"{name}: expected labels that are integers, got {y.dtype}")
    known = concrete(y)
    if known is not None and config.needs_labels:
        classes = max(2, spec.output_dim)
        if known.min() < 0 or known.max() >= classes:
            raise ValueError(
                f"{name}: expected labels 0 ... {classes - 1}, as the network has {spec.output_dim} outputs, "
                f"got {known.min()} ... {known.max()}"
            )
        if known.min() == known.max():
            raise ValueError(f"{name}: expected labels of more than one class, got {known.min()} alone")
    return x, y.astype(jnp.int32)


def targets_of(y: Array, output_dim: int, dtype: Any) -> Float[Array, "n K"]:
    """One-hot rows of labels; +-1 where there is one output, whose sign tells the two classes."""
    if output_dim == 1:
        return (2 * y[:, None] - 1).astype(dtype)
    return jax.nn.one_hot(y, output_dim, dtype=dtype)


def is_right(outputs: Float[Array, "n K"], y: Array) -> Array:
    """Whether each output is that of its label."""
    chosen = (
        (outputs[:, 0] > 0).astype(y.dtype) if outputs.shape[1] == 1 else jnp.argmax(outputs, axis=1).astype(y.dtype)
    )
    return chosen == y
