"""A sweep that a file describes: the built-in statistics over a grid, with all of theory beside them."""

import contextlib
import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from mftadv import report, theory
from mftadv.attack import adversarial_loss, capacity_for
from mftadv.compare import Judgement
from mftadv.experiments import loss_bounds
from mftadv.experiments._experiment import fastest_key
from mftadv.linear import linear_representation
from mftadv.network import init
from mftadv.norms import operator_norm
from mftadv.spec import NetworkSpec
from mftadv.sweep import Dataset, Observer, as_shard, sweep

_OPTIONS = {"statistic", "network", "grid", "networks", "target", "seed", "x64"}


def jacobian(key: Key[Array, ""], spec: NetworkSpec, p: float = 2.0, q: float = 2.0) -> dict[str, Array]:
    """J and a of one network at x = (1, ..., 1): mean squares of entries, |J|_{p->q}, singular values.

    Args:
        key: of the network.
        spec: its law.
        p: exponent of the norm of inputs.
        q: exponent of the norm of outputs.

    Returns:
        "jacobian_variance", the mean of J_ij^2; "shift_variance", the mean of a_i^2; "norm", |J|_{p->q}, from below
        where it is NP-hard; "singular_values" of J [min(K, d)], the largest first.
    """
    network = init(key, spec, "auto", capacity_for(spec, linear_representation=1))
    rep = linear_representation(network, jnp.ones(spec.input_dim))
    return {
        "jacobian_variance": jnp.mean(rep.jacobian**2),
        "shift_variance": jnp.mean(rep.shift**2),
        "norm": operator_norm(rep.jacobian, p, q, key).lower,
        "singular_values": jnp.linalg.svd(rep.jacobian, compute_uv=False),
    }


def loss(
    key: Key[Array, ""], spec: NetworkSpec, eps: Any = 0.1, p: float = 2.0, q: float = 2.0, attack: str = "default"
) -> dict[str, Array]:
    """The adversarial loss of one network at x = (1, ..., 1), from below by attack.

    Args:
        key: of the network.
        spec: its law.
        eps: size of the perturbation.
        p: exponent of its norm.
        q: exponent of the output's norm.
        attack: see `mftadv.adversarial_loss`.

    Returns:
        "loss", and "norm", |J|_{p->q} at x, from below where it is NP-hard.
    """
    network = init(key, spec, "auto", capacity_for(spec, adversarial_loss=1, p=p, attack=attack))
    found = adversarial_loss(network, jnp.ones(spec.input_dim), eps, p, q, key, attack)
    return {"loss": found.value, "norm": operator_norm(found.jacobian, p, q, key).lower}


def _of_jacobian(spec: NetworkSpec, p: float = 2.0, q: float = 2.0) -> dict[str, float]:
    bounds = loss_bounds.predictions(spec, np.ones((1, spec.input_dim)), 1.0, p, q)
    return {
        "jacobian_variance": float(theory.jacobian_variance(spec)),
        "shift_variance": float(theory.shift_variance(spec)),
        **{f"norm_{kind}": bounds[kind] for kind in ("published", "sharp", "chevet", "at_width") if kind in bounds},
    }


def _of_loss(
    spec: NetworkSpec, eps: float = 0.1, p: float = 2.0, q: float = 2.0, attack: str = "default"
) -> dict[str, float]:
    found = loss_bounds.predictions(spec, np.ones((1, spec.input_dim)), eps, p, q)
    return {f"loss_{name}": value for name, value in found.items()}


# For each built-in statistic: itself, what theory says of it, and which of its arguments are constants of its program.
STATISTICS: Mapping[str, tuple[Callable[..., Any], Callable[..., dict[str, float]], tuple[str, ...]]] = {
    "jacobian": (jacobian, _of_jacobian, ("p", "q")),
    "adversarial_loss": (loss, _of_loss, ("p", "q", "attack")),
}


@dataclasses.dataclass(frozen=True)
class SweepFile:
    """What a file of a sweep says, checked.

        statistic = "adversarial_loss"        # or "jacobian"
        networks = 256                        # of each point; with target = 0.05, the first number that is tried
        [network]                             # fields of NetworkSpec
        input_dim = 20
        output_dim = 3
        width = 200
        [grid]                                # fields of NetworkSpec, or arguments of the statistic
        depth = [2, 4, 8]
        p = [1, 2, inf]
        eps = [0.1, 0.3]

    Also `seed` (0), `target` (none) and `x64` (false).
    """

    statistic: str
    spec: NetworkSpec
    grid: Mapping[str, Sequence[Any]]
    networks: int
    target: float | None
    seed: int
    x64: bool

    @classmethod
    def read(cls, path: Path | str) -> "SweepFile":
        """Read a file.

        Raises:
            ValueError: it cannot be read, is no TOML, or says what a sweep cannot do.
        """
        try:
            content = tomllib.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"file: expected a TOML file, got {path} ({error})") from None
        if unknown := content.keys() - _OPTIONS:
            raise ValueError(f"file: expected {', '.join(sorted(_OPTIONS))}, got {min(unknown)}")
        statistic, grid, network = (content.get(name, {}) for name in ("statistic", "grid", "network"))
        if not isinstance(statistic, str) or statistic not in STATISTICS:
            raise ValueError(f"statistic: expected one of {', '.join(STATISTICS)}, got {statistic!r}")
        fields = {field.name for field in dataclasses.fields(NetworkSpec)}
        arguments = set(STATISTICS[statistic][0].__annotations__) - {"key", "spec", "return"}
        for name, table, known in (("network", network, fields), ("grid", grid, fields | arguments)):
            if not isinstance(table, dict) or not table:
                raise ValueError(f"{name}: expected a table [{name}], got {table!r}")
            if unknown := table.keys() - known:
                raise ValueError(f"{name}: expected {', '.join(sorted(known))}, got {min(unknown)}")
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"grid: expected a list of values for {name}, got {values!r}")
        firsts = {name: values[0] for name, values in grid.items() if name in fields}
        sizes = {"input_dim": 64, "output_dim": 1, "width": 100, "depth": 5}
        spec = NetworkSpec(**{**sizes, **firsts, **network})
        return cls(
            statistic, spec, grid, content.get("networks", 256), content.get("target"), content.get("seed", 0),
            bool(content.get("x64", False)),
        )  # fmt: skip

    def run(
        self, folder: Path | str | None = None, observer: Observer | None = None, shard: tuple[int, int] | str = (0, 1)
    ) -> Dataset:
        """Run the sweep, see `mftadv.sweep`.

        Args:
            folder: where to store it.
            observer: is told how it goes.
            shard: (i, n), or "i/n": draw the i-th of n shares of the networks alone, which
                `mftadv.experiments.merge` joins.
        """
        shard = as_shard(shard)
        statistic, predictions, static = STATISTICS[self.statistic]
        options = {name: getattr(self, name) for name in ("statistic", "spec", "grid", "seed", "x64")}

        def predicted(spec: NetworkSpec, **axes: Any) -> dict[str, float]:
            with jax.enable_x64(True), contextlib.suppress(ValueError):
                return {name: float(value) for name, value in predictions(spec, **axes).items()}
            return {}

        with jax.enable_x64(self.x64):
            data = sweep(
                statistic, fastest_key(self.seed), self.spec, self.grid, num_networks=self.networks,
                static=[name for name in static if name in self.grid], folder=folder, shard=shard, target=self.target,
                theory=predicted, observer=observer, options=options,
            )  # fmt: skip
        if folder is not None and shard[1] == 1:
            report.write(folder, (observer or Observer()).say)
        return data

    def tables(self, data: Dataset, judged: Sequence[Judgement] = (), wide: bool = False) -> Sequence[Any]:
        """The tables, as `rich` prints them."""
        return [report.grid_table(data)]
