"""The command line: argument types and calls, nothing else."""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mftadv import report, store, sweep, theory
from mftadv.compare import RESOLUTION, judge
from mftadv.data import load_inputs
from mftadv.experiments import distribution
from mftadv.linear import capacity_for
from mftadv.network import engine_costs
from mftadv.spec import NetworkSpec

FAMILY_ERROR = 1e-3
_PAPER = {"data": "gaussian", "width": 5000, "depth": 10, "bias_variance": 0.0}
_AFFORDABLE_NUMBERS = 4 * 10**9  # the cost, in random numbers drawn, of a run that names no number of networks


@dataclasses.dataclass(frozen=True)
class Validate:
    """Check the law of J and a of random networks: draw many, measure, and hold every claim against its closed form.

    Exit status: 0 when every claim that should hold holds (or is underpowered), 1 when one fails, 2 for bad usage,
    3 when the machine fails (memory, disk).
    """

    data: str = "digits"
    """Inputs: digits, gaussian, or a .npy, .npz, .csv or idx file (gzipped or not)."""
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
    paper: bool = False
    """The paper's configuration wherever no other is asked for: gaussian inputs, d=1000, N=5000, L=10, no bias."""
    seed: int = 0
    """Of the networks and of the choice of inputs."""
    x64: bool = False
    """Draw and compute in float64."""
    dry_run: bool = False
    """Print the plan and the memory it takes; compute nothing."""
    out: Path | None = None
    """Folder for results.json, figure.png and draws.npz (default: the next free one of results/validate-NUMBER)."""
    overwrite: bool = False
    """Replace an earlier result folder."""
    draws: bool = False
    """Keep the raw draws as draws.npz."""

    def __call__(self, console: Console) -> int:
        args = self
        if self.paper:
            defaults = {field.name: field.default for field in dataclasses.fields(self)}
            unset = {name: value for name, value in _PAPER.items() if getattr(self, name) == defaults[name]}
            args = dataclasses.replace(self, **unset)
        with jax.enable_x64(args.x64):
            return _validate(args, console)


def _validate(args: Validate, console: Console) -> int:
    if args.networks is not None and args.networks < 2:
        raise ValueError(f"networks: expected at least 2, for an error bar, got {args.networks}")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"seed: expected an integer from 0 to 2^32 - 1, got {args.seed}")
    out = args.out or store.next_vacant(Path("results/validate"))
    if not args.dry_run:
        store.check_vacant(out, args.overwrite)
    data = load_inputs(args.data, args.inputs, args.seed, input_dim=args.input_dim, scale=args.scale)
    xs = data.values
    spec = NetworkSpec(
        xs.shape[1], args.output_dim, args.width, args.depth, args.weight_variance, args.bias_variance, *args.slopes,
        block=args.block,
    )  # fmt: skip
    if not 0 < float(theory.jacobian_variance(spec)) < math.inf:
        raise ValueError(
            "weight_variance: expected omega^L within the floating-point numbers, and not 0, got "
            f"omega={float(theory.propagation_factor(spec)):g} with L={spec.depth}"
        )
    key = _fastest_key(args.seed)
    plan = distribution.plan(spec, len(xs), FAMILY_ERROR)
    costs = engine_costs(spec, capacity_for(spec, linear_representation=len(xs)))
    engine = min(costs, key=lambda name: costs[name]) if args.engine == "auto" else args.engine
    num_networks = args.networks or int(min(max(plan.values()), max(8, _AFFORDABLE_NUMBERS // costs[engine])))
    statistic = distribution.statistic(spec, len(xs), num_networks, engine)

    console.print(f"inputs    {escape(data.preprocessing)}")
    console.print(
        f"networks  {num_networks} {spec.block}, N={spec.width} L={spec.depth} d={spec.input_dim} K={spec.output_dim}, "
        f"s={spec.weight_variance:g} b2={spec.bias_variance:g} slopes {spec.positive_slope:g} {spec.negative_slope:g}, "
        f"omega={float(theory.propagation_factor(spec)):g}"
    )
    console.print(
        f"engine    {engine}{' (auto)' if args.engine == 'auto' else ''}; cost of a network in random numbers: "
        + ", ".join(f"{name} {cost:.3g}" for name, cost in costs.items())
    )
    with console.status("compiling"):
        run = sweep.draws(statistic, key, spec, jnp.asarray(xs, float), num_networks=num_networks)
    console.print(
        f"plan      chunks of {run.batch_size} networks, {_bytes(run.bytes_per_network)} each; "
        f"compiled in {run.compile_seconds:.1f} s"
    )
    _print_plan(console, plan, num_networks)
    if args.dry_run:
        return 0

    certificate = store.birth_certificate(
        spec,
        key,
        num_networks,
        arguments=dataclasses.asdict(args),
        engine=engine,
        preprocessing=data.preprocessing,
        batch_size=run.batch_size,
        dtype=jnp.zeros(0).dtype,
    )
    start = time.perf_counter()
    samples = []
    with _progress(console) as progress:
        task = progress.add_task("networks", total=num_networks)
        for first, chunk in run:
            samples.append(chunk)
            progress.update(task, completed=min(first + run.batch_size, num_networks))
    sample = jax.tree.map(lambda *parts: np.concatenate(parts), *samples)
    run_seconds = time.perf_counter() - start

    at_input = [jax.tree.map(lambda leaf, i=i: leaf[:, i], sample) for i in range(len(xs))]
    claims = [distribution.claims(spec, x, at) for x, at in zip(xs, at_input, strict=True)]
    judged = iter(judge([claim for group in claims for claim in group], FAMILY_ERROR))
    groups = [[next(judged) for _ in group] for group in claims]
    everything = [judgement for group in groups for judgement in group]
    for i, group in enumerate(groups):
        console.print()
        console.print(report.verdict_table(f"input {i + 1}, |x|^2/d = {np.mean(xs[i] ** 2):.4g}", group))
    notes = {}
    for judgement in everything:
        if judgement.claim.note and judgement.verdict.startswith("fails"):
            notes.setdefault(judgement.claim.note, {})[judgement.claim.quantity] = None
    console.print()
    for note, quantities in notes.items():
        console.print(f"* {'; '.join(quantities)}: {note}", soft_wrap=True)
    counts = {v: sum(j.verdict == v for j in everything) for v in dict.fromkeys(j.verdict for j in everything)}
    console.print(
        f"{', '.join(f'{count} {verdict}' for verdict, count in counts.items())}; "
        f"family error {FAMILY_ERROR:g} over {len(everything)} claims; networks drawn in {run_seconds:.1f} s"
    )

    record = {
        "certificate": certificate,
        "seconds": {"compile": run.compile_seconds, "run": run_seconds},
        "family_error": FAMILY_ERROR,
        "inputs": [
            {"mean_square": float(np.mean(x**2)), "claims": [j.as_dict() for j in group]}
            for x, group in zip(xs, groups, strict=True)
        ],
    }
    figure = _figure(spec, xs, at_input, claims[0])
    files = {
        "results.json": lambda path: path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n"),
        "figure.png": lambda path: figure.savefig(path, dpi=130),
    }
    if args.draws:
        norms = {f"norm_{distribution.exponent(p)}_{distribution.exponent(q)}": v for (p, q), v in sample.norms.items()}
        arrays = {"x": xs, "jacobian": sample.entries, "along_x": sample.along, "shift": sample.shift, **norms}
        files["draws.npz"] = lambda path: np.savez(path, **arrays)
    if not args.out:
        out = store.next_vacant(out.with_name("validate"))  # another run may have taken the number meanwhile
    store.write_run(out, files, overwrite=args.overwrite)
    console.print(f"wrote {', '.join(files)} in {escape(str(out))}")
    return 1 if counts.get("fails") else 0


def _fastest_key(seed: int) -> jax.Array:
    """The fastest kind of key this JAX has that is safe under vmap and sharding."""
    try:
        return jax.random.key(seed, impl="threefry4x32")
    except ValueError:  # JAX before 0.10.2
        return jax.random.key(seed, impl="threefry2x32")


def _print_plan(console: Console, plan: dict[str, float], num_networks: int) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("claim", f"networks to see {RESOLUTION:.0%}", f"{num_networks} networks see about"):
        table.add_column(name, justify="left" if name == "claim" else "right")
    for quantity, needed in plan.items():
        visible = RESOLUTION * math.sqrt(needed / num_networks)
        table.add_row(quantity, f"{needed:.0f}" if math.isfinite(needed) else "never", f"{visible:.1%}")
    console.print(table)


def _figure(spec: NetworkSpec, xs: np.ndarray, at_input: Sequence, claims: Sequence):
    """The figure of a run; bounds and predictions are those of the first input."""
    by_name = {claim.quantity: claim.theory for claim in claims}
    norms = []
    for (p, q), values in at_input[0].norms.items():
        arrow = f"{distribution.exponent(p)}->{distribution.exponent(q)}"
        bounds = {"Chevet's bound": by_name[f"mean |J| {arrow}, Chevet"]}
        if (name := f"mean |J| {arrow}, published") in by_name:
            bounds["published"] = by_name[name]
        norms.append((arrow.replace("->", r"$\to$"), values, by_name.get(f"mean |J| {arrow}, sharp", math.nan), bounds))
    return report.distribution_figure(
        f"{spec.block}, N={spec.width}, L={spec.depth}, d={spec.input_dim}, K={spec.output_dim}: "
        f"J of {len(at_input[0].shift)} networks",
        [f"input {i + 1}, $|x|^2/d$ = {np.mean(x**2):.3g}" for i, x in enumerate(xs)],
        [at.entries.ravel() for at in at_input],
        float(theory.jacobian_variance(spec)),
        None if spec.block == "residual" else float(theory.jacobian_kurtosis(spec)),
        norms,
    )


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=not console.is_terminal)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def _parse(arguments: Sequence[str] | None) -> Validate:
    """The command; a usage error becomes one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.extras.subcommand_cli_from_dict(
                {"validate": Validate}, prog="mftadv", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # a box, drawn as the terminal allows: its title, rules, and between them paragraphs, the first the message
        lines = [line.strip("╭╮╰╯│─ ") for line in box.getvalue().splitlines()[1:]]
        body = itertools.dropwhile(lambda line: not line.strip("-"), lines)
        message = itertools.takewhile(lambda line: line.strip("-"), body)
        raise ValueError(" ".join(message)) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; exit status: the command's, 2 for bad usage, 3 for a failing machine, 130 for Ctrl-C."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    try:
        return _parse(arguments)(console)
    except ValueError as error:
        print(f"mftadv: {error}", file=sys.stderr)
        return 2
    except (OSError, MemoryError, OverflowError, jax.errors.JaxRuntimeError) as error:
        print(f"mftadv: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("mftadv: interrupted; nothing was written", file=sys.stderr)
        return 130
