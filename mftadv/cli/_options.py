"""What the commands share: the options that say which networks, at which inputs, and where the results go."""

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mftadv import store, sweep, theory
from mftadv.compare import Judgement
from mftadv.data import Inputs, load_inputs
from mftadv.network import engine_costs
from mftadv.spec import NetworkSpec

FAMILY_ERROR = 1e-3


def _quotient(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    divisor = float(denominator) if slash else 1.0
    if divisor == 0:
        raise ValueError("expected a denominator that is not 0")  # which tyro reports as it does "a"
    return float(numerator) / divisor


# a number, or a quotient of two: sizes of perturbations of images are given as 8/255
Quotient = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda arguments: _quotient(arguments[0]),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [str(value)],
    ),
]
_NAMED = 3  # how many claims a note names; the table and the record have all


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Which networks, at which inputs, and where the results go."""

    data: str = "digits"
    """Inputs: digits, gaussian, or a .npy, .npz, .csv, .tsv, .txt or idx file (gzipped or not)."""
    inputs: int = 2
    """Number of inputs, chosen at random from the data."""
    input_dim: int = 1000
    """Dimension d of gaussian inputs."""
    scale: bool = True
    """Whether to rescale the data to mean |x|^2/d = 1 (--no-scale: as they are)."""
    networks: int | None = None
    """Number of random networks (default: as many as every claim needs, as far as about a minute goes)."""
    width: int = 100
    """Width N."""
    depth: int = 5
    """Number of hidden layers L."""
    output_dim: int = 1
    """Number of outputs K."""
    block: str = "vanilla"
    """vanilla, residual or signed."""
    weight_variance: float = 2.0
    """s = sigma_w^2: weights are N(0, s/N)."""
    bias_variance: float = 0.1
    """b2 = sigma_b^2: biases are N(0, b2)."""
    slopes: tuple[float, float] = (1.0, 0.0)
    """Slopes u v of the activation on z >= 0 and z < 0; 1 0 is ReLU."""
    engine: Literal["auto", "dense", "matrix_free"] = "auto"
    """How matrices are held: entry by entry, drawn as they are touched (the same law), or as costs less."""
    seed: int = 0
    """Of the networks and of the choice of inputs."""
    x64: bool = False
    """Draw and compute in float64."""
    dry_run: bool = False
    """Print the plan and the memory it takes; compute nothing."""
    out: Path | None = None
    """Folder for the results (default: the next free one of results/COMMAND-NUMBER)."""
    overwrite: bool = False
    """Replace an earlier result folder."""


class Setup(NamedTuple):
    """What the options come to."""

    data: Inputs
    spec: NetworkSpec
    key: jax.Array
    out: Path


def prepare(args: NetworkOptions, command: str) -> Setup:
    """Check the options, read the data, choose the folder.

    Raises:
        ValueError: an option is outside its range.
    """
    if args.networks is not None and args.networks < 2:
        raise ValueError(f"networks: expected at least 2, for an error bar, got {args.networks}")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"seed: expected an integer from 0 to 2^32 - 1, got {args.seed}")
    out = args.out or store.next_vacant(Path("results") / command)
    if not args.dry_run:
        store.check_vacant(out, args.overwrite)
    data = load_inputs(args.data, args.inputs, args.seed, input_dim=args.input_dim, scale=args.scale)
    spec = NetworkSpec(
        data.values.shape[1], args.output_dim, args.width, args.depth, args.weight_variance, args.bias_variance,
        *args.slopes, block=args.block,
    )  # fmt: skip
    if not 0 < float(theory.jacobian_variance(spec)) < math.inf:
        raise ValueError(
            "weight_variance: expected omega^L within the floating-point numbers, and not 0, got "
            f"omega={float(theory.propagation_factor(spec)):g} with L={spec.depth}"
        )
    return Setup(data, spec, fastest_key(args.seed), out)


def choose_engine(console: Console, asked: str, spec: NetworkSpec, capacity: tuple[int, int]) -> tuple[str, float]:
    """The engine for a task, said aloud, and what one network costs by it, in random numbers drawn."""
    costs = engine_costs(spec, capacity)
    engine = min(costs, key=lambda name: costs[name]) if asked == "auto" else asked
    console.print(
        f"engine    {engine}{' (auto)' if asked == 'auto' else ''}; cost of a network in random numbers: "
        + ", ".join(f"{name} {cost:.3g}" for name, cost in costs.items())
    )
    return engine, costs[engine]


def describe(spec: NetworkSpec, num_networks: int) -> str:
    """A line about the networks."""
    return (
        f"networks  {num_networks} {spec.block}, N={spec.width} L={spec.depth} d={spec.input_dim} K={spec.output_dim}, "
        f"s={spec.weight_variance:g} b2={spec.bias_variance:g} slopes {spec.positive_slope:g} {spec.negative_slope:g}, "
        f"omega={float(theory.propagation_factor(spec)):g}"
    )


def certificate(args: NetworkOptions, setup: Setup, num_networks: int, engine: str, batch_size: int) -> dict[str, Any]:
    """The birth certificate of a run."""
    return store.birth_certificate(
        setup.spec,
        setup.key,
        num_networks,
        arguments=dataclasses.asdict(args),
        engine=engine,
        preprocessing=setup.data.preprocessing,
        batch_size=batch_size,
        dtype=jnp.zeros(0).dtype,
    )


def collect(run: sweep.Draws, advance: Callable[[int], None]) -> Any:
    """All draws of a run as one sample; advance(networks) after every chunk."""
    samples = []
    for first, chunk in run:
        samples.append(chunk)
        advance(min(run.batch_size, run.num_networks - first))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *samples)


def fastest_key(seed: int) -> jax.Array:
    """The fastest kind of key this JAX has that is safe under vmap and sharding."""
    try:
        return jax.random.key(seed, impl="threefry4x32")
    except ValueError:  # JAX before 0.10.2
        return jax.random.key(seed, impl="threefry2x32")


def progress_bar(console: Console) -> Progress:
    """A progress bar that leaves no trace where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=not console.is_terminal)


def bytes_in_words(count: float) -> str:
    """A size with its unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def finish(
    console: Console,
    args: NetworkOptions,
    out: Path,
    record: dict[str, Any],
    judged: Sequence[Judgement],
    files: dict[str, Callable[[Path], Any]],
) -> int:
    """Sum up what was judged, write the results, and say where; the exit status."""
    notes: dict[str, dict[str, None]] = {}
    for judgement in judged:
        if judgement.claim.note and judgement.verdict.startswith("fails"):
            notes.setdefault(judgement.claim.note, {})[judgement.claim.quantity] = None
    console.print()
    for note, quantities in notes.items():
        named = "; ".join(itertools.islice(quantities, _NAMED)) + "; ..." * (len(quantities) > _NAMED)
        console.print(f"* {len(quantities)} x {note}: {named}", soft_wrap=True)
    counts = Counter(judgement.verdict for judgement in judged)
    console.print(
        f"{', '.join(f'{count} {verdict}' for verdict, count in counts.items())}; "
        f"family error {FAMILY_ERROR:g} over {len(judged)} claims; networks drawn in {record['seconds']['run']:.1f} s"
    )
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    files = {"results.json": lambda path: path.write_text(text), **files}
    if not args.out:
        out = store.next_vacant(out.with_name(out.name.rpartition("-")[0]))  # another run may have taken the number
    store.write_run(out, files, overwrite=args.overwrite)
    console.print(f"wrote {', '.join(files)} in {escape(str(out))}")
    return 1 if counts["fails"] else 0
