"""`mftadv bounds`: the adversarial loss of random networks against its bounds."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape

from mftadv import report, store, sweep
from mftadv.attack import capacity_for
from mftadv.cli import _options
from mftadv.compare import judge
from mftadv.data import load_inputs
from mftadv.experiments import bounds
from mftadv.spec import NetworkSpec, check_exponent, representable

_AFFORDABLE = 6 * 10**9  # the cost, in random numbers drawn, of a run that names no number of networks
_MOST, _LEAST = 64, 16  # networks of such a run
_BATCH = 2 * 10**7  # the cost of a chunk of networks


@dataclasses.dataclass(frozen=True)
class Bounds(_options.NetworkOptions):
    """Attack random networks, and hold the adversarial loss against eps |J(x)| and the bound of each kind.

    The first part runs over p, q and eps at the inputs; the second, over gaussian inputs of mean square 1, shows what
    the dimensions do: over --dims with the K of --output-dim, and over --outputs with the first d of --dims, at q = 2.

    Exit status: 0 when every claim that should hold holds (or is underpowered), 1 when one fails, 2 for bad usage,
    3 when the machine fails (memory, disk).
    """

    inputs: int = 1
    """Number of inputs, chosen at random from the data; a matrix-free network costs the square of it."""
    output_dim: int = 4
    """Number of outputs K."""
    p: tuple[float, ...] = (1.0, 2.0, math.inf)
    """Exponents of the perturbation's norm."""
    q: tuple[float, ...] = (1.0, 2.0, math.inf)
    """Exponents of the output's norm."""
    eps: tuple[_options.Quotient, ...] = (0.1, 0.3, 1.0, 3.0)
    """Sizes of the perturbation in its p-norm, numbers or quotients (8/255); the second part takes the smallest."""
    dims: tuple[int, ...] = (16, 64, 256)
    """Input dimensions d of the second part."""
    outputs: tuple[int, ...] = (1, 4, 16)
    """Output dimensions K of the second part."""
    attack: Literal["default", "thorough"] = "default"
    """How hard to attack; a matrix-free network, whose cost grows like the square, gets one start and 8 steps."""

    def __call__(self, console: Console) -> int:
        with jax.enable_x64(self.x64):
            return _bounds(self, console)


class _Run(NamedTuple):
    """Networks attacked at some inputs, in one pair of norms, at one size."""

    parts: tuple[str, ...]  # of the results that it belongs to
    spec: NetworkSpec
    xs: np.ndarray
    eps: float
    p: float
    q: float

    @property
    def program(self) -> tuple:
        """Runs that share it share a compiled program."""
        return self.p, self.q, self.xs.shape, self.spec.output_dim

    def __str__(self) -> str:
        shape = f"d={self.spec.input_dim} K={self.spec.output_dim}"
        return f"{bounds.exponent(self.p)}->{bounds.exponent(self.q)} {shape} eps={self.eps:g}"


def _bounds(args: Bounds, console: Console) -> int:
    _check(args)
    setup = _options.prepare(args, "bounds")
    runs = list(_runs(args, setup))
    rooms = (
        capacity_for(
            run.spec, adversarial_loss=len(run.xs), attack=bounds.attack_for("matrix_free", args.attack, run.p)
        )
        for run in runs
    )
    room = tuple(max(side) for side in zip(*rooms, strict=True))
    console.print(f"inputs    {escape(setup.data.preprocessing)}")
    engine, cost = _options.choose_engine(console, args.engine, setup.spec, room)
    num_networks = args.networks or int(min(_MOST, max(_LEAST, _AFFORDABLE // (len(runs) * cost))))
    batch_size = max(1, min(num_networks, int(_BATCH // cost)))
    console.print(_options.describe(setup.spec, num_networks))
    programs = {run.program for run in runs}
    console.print(
        f"plan      {len(runs)} runs, one for each p, q, eps, d and K, by {len(programs)} programs; "
        f"chunks of {batch_size} networks"
    )
    if args.dry_run:
        return 0

    certificate = _options.certificate(args, setup, num_networks, engine, batch_size)
    kept = store.Kept(setup.out, certificate)
    samples, record = _attack(args, console, setup, runs, kept, engine, num_networks, batch_size)

    cells, claims = [], []
    for run, sample in zip(runs, samples, strict=True):
        predicted = bounds.predictions(run.spec, run.xs, run.eps, run.p, run.q)
        arguments = (predicted, run.eps, run.p, run.q, sample)
        cells.append({"parts": run.parts, **bounds.cell(run.spec, *arguments)})
        claims.append(bounds.claims(run.spec, run.xs, *arguments))
    judged = judge([claim for group in claims for claim in group.values()], _options.FAMILY_ERROR)
    verdicts = iter(judged)
    for cell, group in zip(cells, claims, strict=True):
        cell["verdicts"] = {kind: next(verdicts).verdict for kind in group}
    for part, varied in (("inputs", "eps"), ("d", "d"), ("K", "K")):
        rows = [cell for cell in cells if part in cell["parts"]]
        fixed = ", ".join(f"{name}={rows[0][name]:g}" for name in ("eps", "d", "K") if name != varied)
        console.print()
        console.print(
            report.bounds_table(f"{'the inputs' if part == 'inputs' else 'gaussian inputs'}, {fixed}", rows, varied)
        )
    record = {
        "certificate": certificate,
        **record,
        "family_error": _options.FAMILY_ERROR,
        "cells": cells,
        "claims": [judgement.as_dict() for judgement in judged],
    }
    main = runs[0]
    title = (
        f"{main.spec.block}, N={main.spec.width}, L={main.spec.depth}, {num_networks} networks, "
        f"attack on {len(main.xs)} input{'s' * (len(main.xs) > 1)}"
    )
    panels = report.loss_figure(f"{title}, d={main.spec.input_dim}, K={main.spec.output_dim}", cells)
    dimensions = report.dimensions_figure(f"{title}, gaussian inputs, eps={min(args.eps):g}, q=2", cells)
    figures = {"loss.png": panels, "dimensions.png": dimensions}
    files = {name: lambda path, figure=figure: figure.savefig(path, dpi=130) for name, figure in figures.items()}
    status = _options.finish(console, args, setup.out, record, judged, files)
    kept.discard()
    return status


def _attack(
    args: Bounds,
    console: Console,
    setup: _options.Setup,
    runs: Sequence[_Run],
    kept: store.Kept,
    engine: str,
    num_networks: int,
    batch_size: int,
) -> tuple[list[bounds.Sample], dict[str, Any]]:
    """The sample of every run, from where an interruption left off, and what is to be said of how it went."""

    def compiled(run: _Run) -> sweep.Draws:
        with jax.enable_x64(args.x64):  # which belongs to a thread
            statistic = bounds.Statistic(run.p, run.q, bounds.attack_for(engine, args.attack, run.p), engine)
            operands = jnp.asarray(run.xs, float), jnp.asarray(run.eps, float)
            return sweep.draws(
                statistic, setup.key, run.spec, *operands, num_networks=num_networks, batch_size=batch_size
            )

    done = {i: bounds.Sample(*arrays) for i in range(len(runs)) if (arrays := kept.load(str(i)))}
    samples = dict(done)
    if done:
        console.print(f"going on  {len(done)} of {len(runs)} runs were done before an interruption")
    start = time.perf_counter()
    pool, programs = ThreadPoolExecutor(max_workers=2), {}  # programs are compiled while others run
    try:
        for i, run in enumerate(runs):
            if i not in done and run.program not in programs:
                programs[run.program] = pool.submit(compiled, run)
        with _options.progress_bar(console) as progress:
            task = progress.add_task("", total=len(runs) * num_networks, completed=len(done) * num_networks)
            for i, run in enumerate(runs):
                if i in done:
                    continue
                progress.update(task, description=f"compiling {run}")
                programs[run.program].result()
                progress.update(task, description=f"attacking {run}")
                samples[i] = _options.collect(compiled(run), lambda networks: progress.advance(task, networks))
                kept.save(str(i), samples[i])
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from there" if samples else "") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    compile_seconds = sum(program.result().compile_seconds for program in programs.values())
    return [samples[i] for i in range(len(runs))], {
        "seconds": {"compile": compile_seconds, "run": time.perf_counter() - start},
        "programs": len(programs),
        "runs": {"all": len(runs), "done_before": len(done)},
    }


def _check(args: Bounds) -> None:
    for name, values in (
        ("p", args.p),
        ("q", args.q),
        ("eps", args.eps),
        ("dims", args.dims),
        ("outputs", args.outputs),
    ):
        if not values:
            raise ValueError(f"{name}: expected at least one number, got none")
    for name, values in (("p", args.p), ("q", args.q)):
        for value in values:
            check_exponent(name, value)
    dtype = jnp.result_type(float)
    if bad := [eps for eps in args.eps if eps == 0 or not representable(eps, dtype)]:
        raise ValueError(f"eps: expected finite numbers > 0 in {dtype.name}, got {bad[0]}")
    for name, values in (("dims", args.dims), ("outputs", args.outputs)):
        if min(values) < 1:
            raise ValueError(f"{name}: expected positive integers, got {min(values)}")


def _runs(args: Bounds, setup: _options.Setup) -> Iterator[_Run]:
    sizes = tuple(sorted(set(args.eps)))
    ps, qs = dict.fromkeys(args.p), dict.fromkeys(args.q)
    for p, q in itertools.product(ps, qs):
        for eps in sizes:
            yield _Run(("inputs",), setup.spec, setup.data.values, eps, p, q)
    first = args.dims[0]
    shapes: dict[tuple[int, int], tuple[str, ...]] = {(d, args.output_dim): ("d",) for d in args.dims}
    for K in args.outputs:
        shapes[first, K] = (*shapes.get((first, K), ()), "K")
    for (d, K), parts in shapes.items():
        xs = load_inputs("gaussian", args.inputs, args.seed, input_dim=d).values
        spec = dataclasses.replace(setup.spec, input_dim=d, output_dim=K)
        for p in ps:
            yield _Run(parts, spec, xs, sizes[0], p, 2.0)
