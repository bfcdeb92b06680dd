"""`mftadv validate`: the law of J and a of random networks."""

import dataclasses
import math
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mftadv import report, sweep, theory
from mftadv.attack import capacity_for
from mftadv.cli import _options
from mftadv.compare import RESOLUTION, judge
from mftadv.experiments import distribution
from mftadv.spec import NetworkSpec

_PAPER = {"data": "gaussian", "width": 5000, "depth": 10, "bias_variance": 0.0}
_AFFORDABLE = 4 * 10**9  # the cost, in random numbers drawn, of a run that names no number of networks


@dataclasses.dataclass(frozen=True)
class Validate(_options.NetworkOptions):
    """Check the law of J and a of random networks: draw many, measure, and hold every claim against its closed form.

    Exit status: 0 when every claim that should hold holds (or is underpowered), 1 when one fails, 2 for bad usage,
    3 when the machine fails (memory, disk).
    """

    paper: bool = False
    """The paper's configuration wherever no other is asked for: gaussian inputs, d=1000, N=5000, L=10, no bias."""
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
    setup = _options.prepare(args, "validate")
    data, spec, key, out = setup
    xs = data.values
    plan = distribution.plan(spec, len(xs), _options.FAMILY_ERROR)
    console.print(f"inputs    {escape(data.preprocessing)}")
    engine, cost = _options.choose_engine(console, args.engine, spec, capacity_for(spec, linear_representation=len(xs)))
    num_networks = args.networks or int(min(max(plan.values()), max(8, _AFFORDABLE // cost)))
    statistic = distribution.statistic(spec, len(xs), num_networks, engine)
    console.print(_options.describe(spec, num_networks))
    with console.status("compiling"):
        run = sweep.draws(statistic, key, spec, jnp.asarray(xs, float), num_networks=num_networks)
    console.print(
        f"plan      chunks of {run.batch_size} networks, {_options.bytes_in_words(run.bytes_per_network)} each; "
        f"compiled in {run.compile_seconds:.1f} s"
    )
    _print_plan(console, plan, num_networks)
    if args.dry_run:
        return 0

    start = time.perf_counter()
    with _options.progress_bar(console) as progress:
        task = progress.add_task("networks", total=num_networks)
        sample = _options.collect(run, lambda done: progress.advance(task, done))
    run_seconds = time.perf_counter() - start

    at_input = [jax.tree.map(lambda leaf, i=i: leaf[:, i], sample) for i in range(len(xs))]
    claims = [distribution.claims(spec, x, at) for x, at in zip(xs, at_input, strict=True)]
    judged = iter(judge([claim for group in claims for claim in group], _options.FAMILY_ERROR))
    groups = [[next(judged) for _ in group] for group in claims]
    everything = [judgement for group in groups for judgement in group]
    for i, group in enumerate(groups):
        console.print()
        console.print(report.verdict_table(f"input {i + 1}, |x|^2/d = {np.mean(xs[i] ** 2):.4g}", group))
    record = {
        "certificate": _options.certificate(args, setup, num_networks, engine, run.batch_size),
        "seconds": {"compile": run.compile_seconds, "run": run_seconds},
        "family_error": _options.FAMILY_ERROR,
        "inputs": [
            {"mean_square": float(np.mean(x**2)), "claims": [j.as_dict() for j in group]}
            for x, group in zip(xs, groups, strict=True)
        ],
    }
    figure = _figure(spec, xs, at_input, claims[0])
    files = {"figure.png": lambda path: figure.savefig(path, dpi=130)}
    if args.draws:
        norms = {f"norm_{distribution.exponent(p)}_{distribution.exponent(q)}": v for (p, q), v in sample.norms.items()}
        arrays = {"x": xs, "jacobian": sample.entries, "along_x": sample.along, "shift": sample.shift, **norms}
        files["draws.npz"] = lambda path: np.savez(path, **arrays)
    return _options.finish(console, args, out, record, everything, files)


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
