"""Timing of contenders side by side: warm-up, round-robin repeats, medians, quartiles, ratios, floors."""

import dataclasses
import gc
import importlib.metadata
import importlib.util
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mftadv import NetworkSpec
from mftadv.sweep import available_cores

FAST_KEY = "threefry4x32"
PATIENCE = 60.0  # seconds after which no round of a task begins: threads that wait for taken cores can be slow
HAS_TORCH = importlib.util.find_spec("torch") is not None


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to compute something.

    Args:
        name: what the tables call it.
        run: computes it once; the harness waits for what it returns.
        work: what cannot be avoided, in the units of the benchmark's probes: {"bytes": ..., "flops": ...}.
        like: the contender whose first two outputs these must equal to rounding, None where there is none.
    """

    name: str
    run: Callable[[], Any]
    work: Mapping[str, float] = dataclasses.field(default_factory=dict)
    like: str | None = None


@dataclasses.dataclass(frozen=True)
class Probe:
    """A rate of this machine, measured in the rounds of the contenders: `amount` units a run."""

    run: Callable[[], Any]
    amount: float


@dataclasses.dataclass(frozen=True)
class Goal:
    """The time of `ours` is at most `limit` times that of the fastest of `others`; None is for information."""

    ours: str
    others: tuple[str, ...]
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Contenders for one task, at the sizes of `shapes`."""

    shapes: Mapping[str, int]
    contenders: Sequence[Contender]
    goals: Sequence[Goal]
    probes: Mapping[str, Probe] = dataclasses.field(default_factory=dict)
    rounds: int = 11
    growth: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)  # sizes, by contender
    outcomes: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)  # a number of each network


def read_probe(side: int) -> Probe:
    """Bytes read from memory, by a product of a matrix and a vector, which outruns a sum."""
    array, vector = jnp.ones((side, side), jnp.float32), jnp.ones(side, jnp.float32)
    product = jax.jit(lambda a, v: jnp.matmul(a, v, precision="highest"))
    return Probe(lambda: product(array, vector), array.nbytes)


def flop_probe(n: int) -> Probe:
    """Floating-point operations, by a product of two matrices."""
    array = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    return Probe(lambda: product(array), 2 * n**3)


def normal_probe(impl: str, shape: tuple[int, ...]) -> Probe:
    """Normal numbers drawn, by one plain call."""
    key, draw = jax.random.key(0, impl=impl), jax.jit(lambda key: jax.random.normal(key, shape))
    return Probe(lambda: draw(key), math.prod(shape))


def hardware_probes(quick: bool) -> dict[str, Probe]:
    """The rates of reading memory and of multiplying matrices."""
    side = 256 if quick else 1024 if jax.default_backend() == "cpu" else 8192
    return {"bytes": read_probe(1000 if quick else 10_000), "flops": flop_probe(side)}


def divided(function: Callable[..., Any], networks: Any, *others: Any) -> Callable[[], Any]:
    """Computes function(networks, *others) with the networks on all devices, an equal share on each.

    On a CPU with a device for each core a core takes networks of its own. Else all of them work on one product, and on
    a batch of small ones a single core does.
    """
    count = len(jax.tree.leaves(networks)[0])
    mesh = jax.make_mesh((math.gcd(count, len(jax.devices())),), ("networks",))
    shares, whole = PartitionSpec("networks"), PartitionSpec()
    specs = (shares, *[whole] * len(others))
    run = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=shares, check_vma=False))
    there = jax.device_put(networks, NamedSharding(mesh, shares))
    return lambda: run(there, *others)


def measure(benchmark: Benchmark, judged: bool = True) -> dict[str, Any]:
    """Time a benchmark; a record fit for JSON. Goals are for full size: toys are not `judged`."""
    gc.collect()
    gc.freeze()  # so that no collection during a run walks all that is imported
    runs = {c.name: c.run for c in benchmark.contenders} | {f"rate of {n}": p.run for n, p in benchmark.probes.items()}
    first = {name: _timed(run)[0] for name, run in runs.items()}
    seconds, processor = {name: [] for name in runs}, {name: [] for name in runs}
    order, deadline = list(runs), time.perf_counter() + PATIENCE
    for rounds in range(1, benchmark.rounds + 1):
        for name in order:
            elapsed, busy = _timed(runs[name])
            seconds[name].append(elapsed)
            processor[name].append(busy)
        order.append(order.pop(0))  # the order turns, so that each is first once in a while
        if rounds >= 3 and time.perf_counter() > deadline:
            break
    gc.unfreeze()
    rates = {name: probe.amount / min(seconds[f"rate of {name}"]) for name, probe in benchmark.probes.items()}
    floors = {c.name: max(((w / rates[u], u) for u, w in c.work.items()), default=None) for c in benchmark.contenders}
    return {
        "shapes": dict(benchmark.shapes),
        "rounds": len(seconds[order[0]]),
        "rates_per_second": rates,
        "times": {
            c.name: {
                **_spread(seconds[c.name]),
                "cores_used": float(np.median(np.divide(processor[c.name], seconds[c.name]))),
                "first_seconds": first[c.name],
                "floor": floors[c.name],
                "seconds": seconds[c.name],
                "processor_seconds": processor[c.name],
            }
            for c in benchmark.contenders
        },
        "ratios": [_ratio(goal, seconds, processor, judged) for goal in benchmark.goals if _others(goal, seconds)],
        "exponents": {name: _exponent(sizes, seconds) for name, sizes in benchmark.growth.items()},
        "agreement": agreement(benchmark),
        "outcomes": {name: _mean_and_error(to_numpy(run())) for name, run in benchmark.outcomes.items()},
    }


def agreement(benchmark: Benchmark) -> dict[str, float]:
    """How far contenders for the same answer differ, relative to its largest entry."""
    contenders, differences = {c.name: c for c in benchmark.contenders}, {}
    for contender in benchmark.contenders:
        if contender.like:
            pairs = zip(contenders[contender.like].run()[:2], contender.run()[:2], strict=True)
            differences[contender.name] = max(_difference(to_numpy(a), to_numpy(b)) for a, b in pairs)
    return differences


def environment() -> dict[str, Any]:
    """The machine and the versions a record was made with."""
    threads = {"jax": available_cores()}  # XLA's pool has one thread for each core it may use
    packages = ["jax", "jaxlib", "numpy"] + ["torch"] * HAS_TORCH
    devices = [jax.devices()[0].device_kind]
    if HAS_TORCH:
        import torch

        torch.set_num_threads(available_cores())
        threads["torch"] = torch.get_num_threads()
        devices.append(torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "device": dict(zip(threads, devices, strict=True)),
        "platform": jax.default_backend(),
        "processor": _processor(),
        "cores": available_cores(),
        "threads": threads,
        "versions": {"python": platform.python_version(), **versions},
    }


def table(name: str, record: Mapping[str, Any]) -> str:
    """A record in words: times, then ratios with their goals."""
    shapes = " ".join(f"{key}={value}" for key, value in record["shapes"].items())
    rates = ", ".join(f"{rate / 1e9:.3g} G {unit}/s" for unit, rate in record["rates_per_second"].items())
    lines = [f"{name}: {shapes}; {record['rounds']} rounds; {rates}"]
    width = max(map(len, record["times"])) + 2
    columns = "{:10}{:>23}{:>7}{:>11} {:13}{:>8}{:>12}"
    header = columns.format("    median", "quartiles", "cores", "floor", "", "first", "differs by")
    lines.append(f"  {'':{width}}{header}")
    for contender, times in record["times"].items():
        (low, high), floor, differs = times["quartiles"], times["floor"], record["agreement"].get(contender)
        row = columns.format(
            f"{times['median']:10.4g}",
            f"{low:.4g} - {high:.4g}",
            f"{times['cores_used']:.1f}",
            f"{floor[0]:.4g}" if floor else "",
            floor[1] if floor else "",
            f"{times['first_seconds']:.3g}",
            "" if differs is None else f"{differs:.0e}",
        )
        lines.append(f"  {contender:{width}}{row}".rstrip())
    lines += [f"  {name}: {mean:.4f} +- {error:.4f}" for name, (mean, error) in record["outcomes"].items()]
    lines += [f"  time grows as {size}^{power:.2f}" for size, power in record["exponents"].items()]
    for ratio in record["ratios"]:
        low, high = ratio["quartiles"]
        verdict = {None: "not judged at toy size", True: "met", False: "MISSED"}[ratio["met"]]
        goal = "" if ratio["limit"] is None else f"  goal <= {ratio['limit']:g}: {verdict}"
        spread = f"{ratio['median']:.3f} ({low:.3f} - {high:.3f}), processor {ratio['processor']:.3f}"
        lines.append(f"  {ratio['ours']} / {ratio['other']}: {spread}{goal}")
    return "\n".join(lines)


def shapes_of(spec: NetworkSpec) -> dict[str, int]:
    """The sizes of a network, as the tables name them."""
    return {"d": spec.input_dim, "K": spec.output_dim, "N": spec.width, "L": spec.depth}


def entries_of(spec: NetworkSpec) -> int:
    """The number of entries of all matrices of a network."""
    return spec.width * (spec.input_dim + spec.output_dim + spec.width * spec.depth)


def to_numpy(array: Any) -> np.ndarray:
    """The value of a JAX array or a torch tensor."""
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)


def _timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and seconds of all cores, until every output is there; outputs are dropped after that."""
    start, start_busy = time.perf_counter(), time.process_time()
    output = run()
    jax.block_until_ready(output)
    if HAS_TORCH:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - start_busy


def _spread(values: Sequence[float]) -> dict[str, Any]:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "quartiles": [low, high]}


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean over networks and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def _others(goal: Goal, seconds: Mapping[str, Any]) -> list[str]:
    return [name for name in goal.others if name in seconds]


def _ratio(
    goal: Goal, seconds: Mapping[str, Sequence[float]], processor: Mapping[str, Sequence[float]], judged: bool
) -> dict[str, Any]:
    """Ratio of medians, with the quartiles of the ratios within a round: both met the same noise there.

    Beside it that of processor time, which waiting for taken cores does not lengthen.
    """
    other = min(_others(goal, seconds), key=lambda name: np.median(seconds[name]))
    ours, theirs = np.asarray(seconds[goal.ours]), np.asarray(seconds[other])
    median = float(np.median(ours) / np.median(theirs))
    met = median <= goal.limit if judged and goal.limit is not None else None
    spread = {"median": median, "quartiles": np.quantile(ours / theirs, (0.25, 0.75)).tolist()}
    busy = float(np.median(processor[goal.ours]) / np.median(processor[other]))
    return {"ours": goal.ours, "other": other, **spread, "processor": busy, "limit": goal.limit, "met": met}


def _exponent(sizes: Mapping[str, float], seconds: Mapping[str, Sequence[float]]) -> float:
    """The slope of log time against log size, by least squares."""
    medians = [np.median(seconds[name]) for name in sizes]
    return float(np.polyfit(np.log(list(sizes.values())), np.log(medians), 1)[0])


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        raise ValueError(f"outputs: expected one shape, got {list(a.shape)} and {list(b.shape)}")
    return float(np.max(np.abs(a - b)) / np.max(np.abs(a)))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
