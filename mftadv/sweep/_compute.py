"""Draw the networks of many cells, by few programs that are compiled ahead; results are handed on as they are done."""

import dataclasses
import functools
import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from mftadv.statistics import Moments, merge, to_host
from mftadv.sweep._cells import Cell, Observer
from mftadv.sweep._monte_carlo import check_range
from mftadv.sweep._plan import Arrays, Plan, Store, names
from mftadv.sweep._program import Program, compile_program
from mftadv.sweep._segments import OnTheWay

_LONG = 5.0  # seconds from which on it is said how long a run will take
_STRETCH = 2.0  # seconds since results were last stored; after these they are stored when a chunk or a segment ends
_WRITING = 20  # how many times the seconds that a checkpoint takes must pass before the next


def compute(
    plan: Plan,
    networks: Sequence[range],
    store: Store,
    observer: Observer | None = None,
    *,
    batch_size: int | None = None,
) -> None:
    """Draw the networks of every cell that the store does not have, and store them.

    A chunk that does not fit into memory is halved and tried again. An interruption (KeyboardInterrupt) loses the chunk
    that it meets, or the segment of it.

    Args:
        plan: see `plan_cells`.
        networks: for each cell its networks.
        store: where results go.
        observer: is told how it goes.
        batch_size: networks of a cell drawn at once; None to decide by memory.

    Raises:
        ValueError: one network does not fit into memory.
    """
    for some in networks:
        check_range(some.start, len(some))
    run = _Run(plan, networks, store, observer or Observer(), batch_size)
    for cells, some in run.work:
        for at in _slices(cells, run.program(cells).num_cells or 1):
            run.draw(at, some)
    run.observer.progress(1, "")


class _Run:
    """The work on a plan: its programs, what is left to do, and when results were last stored."""

    def __init__(self, plan: Plan, networks: Sequence[range], into: Store, observer: Observer, batch_size: int | None):
        self.plan, self.store, self.observer = plan, into, observer
        self.work = list(_work(plan, networks, into))
        self.total = sum(plan.weight(cell, len(some)) for cell, some in enumerate(networks))
        self.left = sum(plan.weight(cells[0], len(cells) * len(some)) for cells, some in self.work)
        self.stored, self.estimated = time.monotonic(), False
        needed = dict.fromkeys(plan.group_of[cells[0]] for cells, _ in self.work)
        self.most = {
            group: max(len(some) for cells, some in self.work if plan.group_of[cells[0]] == group) for group in needed
        }
        self.programs: dict[int, Program] = {}
        self.ahead = _compiled_ahead(self._compiled, list(needed), batch_size)

    def _compiled(self, group: int, batch_size: int | None) -> Program:
        plan, axes = self.plan, self.plan.axes[group]
        return compile_program(
            plan.groups[group], self.most[group], batch_size=batch_size, axes=axes, mesh=plan.mesh,
            reduced=plan.reduced, num_cells=None if axes is None else plan.group_of.count(group),
        )  # fmt: skip

    def program(self, cells: range) -> Program:
        """The program of some cells, waited for where it is not compiled yet."""
        group = self.plan.group_of[cells[0]]
        if group not in self.programs:
            self._tell("compiling ", cells)
            self.programs[group] = next(self.ahead)
        return self.programs[group]

    def _tell(self, doing: str, cells: range) -> None:
        self.observer.progress(1 - self.left / self.total, doing + _coordinates(self.plan.cells[cells[0]]))

    def draw(self, at: range, some: range) -> None:
        """Draw networks of cells that fit into one program, and store them now and then."""
        start, stop, pending = some.start, some.start, []

        def store_pending():
            if pending:
                self.store.write_part(at, range(start, stop), _joined(pending, self.plan.reduced))
                pending.clear()

        try:
            for chunk, drawn in self._chunks(at, some):
                pending.append(drawn)
                stop = chunk.stop
                if stop == some.stop or time.monotonic() - self.stored > _STRETCH:
                    store_pending()
                    start, self.stored = stop, time.monotonic()
        except KeyboardInterrupt:  # which loses the chunk that it meets
            store_pending()
            raise

    def _chunks(self, at: range, some: range) -> Iterator[tuple[range, Arrays]]:
        """Networks and their results, chunk by chunk, of half the size whenever memory was too small."""
        begin = some.start
        while begin < some.stop:
            self._tell("", at)
            size = self.program(at).batch_size
            chunk, begun = range(begin, min(begin + size, some.stop)), time.monotonic()
            try:
                if self.plan.segments(at[0]) is None:
                    drawn = _draw(self.plan, self.program(at), at, chunk)
                    self.done(at, len(chunk), begun)
                else:
                    chunk, drawn = self._in_segments(at, chunk)
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not _out_of_memory(error) or size == 1:
                    raise
                self.observer.say(f"out of memory with {size} networks at once: half as many from here on")
                group = self.plan.group_of[at[0]]
                self.programs[group] = self._compiled(group, size // 2)
                continue
            begin = chunk.stop
            yield chunk, drawn

    def done(self, at: range, networks: float, begun: float, typical: bool = True) -> None:
        """Count what was drawn since a time; say once how long the rest will take, where that is long and typical."""
        drawn = self.plan.weight(at[0], len(at) * networks)
        self.left -= drawn
        if not typical or self.estimated:
            return
        if (seconds := self.left / drawn * (time.monotonic() - begun)) > _LONG:
            self.observer.say(f"time      about {seconds:.0f} s, by what was computed first, compiling aside")
        self.estimated = True

    def _in_segments(self, at: range, chunk: range) -> tuple[range, Arrays]:
        """Networks of one cell, segment by segment, from where a checkpoint left them; a checkpoint now and then."""
        (cell,), program, checkpoints = at, self.program(at), self.store.checkpoints
        way = OnTheWay.of(self.plan, cell, chunk, program.batch_size, checkpoints)
        arguments, each = self.plan.arguments([cell]), self.plan.weight(cell, len(way.networks) / way.segments)
        stored, written, pause = way.done, time.monotonic(), _STRETCH
        self.left -= each * way.done
        try:
            while way.done < way.segments:
                self._tell(f"{way.done} of {way.segments} ", at)
                begun = time.monotonic()
                way.go_on(program.call, arguments)
                # The first segment is often a short one.
                self.done(at, len(way.networks) / way.segments, begun, typical=way.done > 1)
                if checkpoints and way.done < way.segments and time.monotonic() - written > pause:
                    begun = time.monotonic()
                    way.store(checkpoints)
                    stored, written = way.done, time.monotonic()
                    pause = max(_STRETCH, _WRITING * (written - begun))
        except (KeyboardInterrupt, jax.errors.JaxRuntimeError, MemoryError):  # too little memory, for one
            self.left += each * way.done  # they are met again
            if checkpoints and way.done > stored:
                way.store(checkpoints)
            raise
        return way.networks, {name: each[None] for name, each in way.found.items()}


def as_shard(shard: tuple[int, int] | str) -> tuple[int, int]:
    """(i, n) for the i-th of n shares, which may also be written "i/n".

    Raises:
        ValueError: it is a text of another form.
    """
    if not isinstance(shard, str):
        return shard
    share, _, shares = shard.partition("/")
    if not (share.isdecimal() and shares.isdecimal()):
        raise ValueError(f"shard: expected i/n, got {shard!r}")
    return int(share), int(shares)


def shares(counts: Sequence[int], shard: tuple[int, int]) -> list[range]:
    """For each cell the networks of the i-th of n shares, (i, n), of so many."""
    i, n = shard
    return [range(i * count // n, (i + 1) * count // n) for count in counts]


def _work(plan: Plan, networks: Sequence[range], store: Store) -> Iterator[tuple[range, range]]:
    """The cells and networks to draw: cells in a row that share a program and lack the same networks."""
    for run in plan.runs():
        lacking = {i: tuple(store.missing(i, networks[i].stop, networks[i].start)) for i in run}
        for missing, some in itertools.groupby(run, key=lambda i: lacking[i]):
            cells = list(some)
            yield from ((range(cells[0], cells[-1] + 1), part) for part in missing)


def _slices(cells: range, size: int) -> Iterator[range]:
    return (cells[i : i + size] for i in range(0, len(cells), size))


def _compiled_ahead(compiled: Any, groups: Sequence[int], batch_size: int | None) -> Iterator[Program]:
    """The program of each group, each compiled by a thread while those before it run.

    The thread is a daemon, so that an interrupted process does not wait for the compiler.
    """
    futures = [Future() for _ in groups]
    config: Any = jax.config  # of which each thread has its own
    double, device, precision = config.jax_enable_x64, config.jax_default_device, config.jax_default_matmul_precision
    stop = threading.Event()

    def work():
        with jax.enable_x64(double), jax.default_device(device), jax.default_matmul_precision(precision):
            for group, future in zip(groups, futures, strict=True):
                if stop.is_set():
                    return
                try:
                    future.set_result(compiled(group, batch_size))
                except BaseException as error:
                    future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        for future in futures:
            yield future.result()
    finally:
        stop.set()


def _draw(plan: Plan, program: Program, cells: range, networks: range) -> Arrays:
    """The results of some networks of some cells, no more of them than the program takes: [C, R, ...] each."""
    padded = [*cells, *[cells[-1]] * ((program.num_cells or 1) - len(cells))]
    values = program.call(networks.start, len(networks), *plan.arguments(padded))
    if plan.reduced:
        devices = len(jax.tree.leaves(values)[0])
        parts = [to_host(jax.tree.map(lambda leaf, i=i: leaf[i], values)) for i in range(devices)]
        values = _by_field(names(functools.reduce(merge, parts)))
    else:
        values = names(values)
    trimmed = {}
    for name, leaf in values.items():
        leaf = leaf[None] if program.num_cells is None else leaf[: len(cells)]
        trimmed[name] = leaf if plan.reduced else leaf[:, : len(networks)]
    return trimmed


def _joined(chunks: Sequence[Arrays], reduced: bool) -> Arrays:
    """The results of consecutive chunks of networks as those of one."""
    if not reduced:
        return {name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in chunks[0]}
    return _by_field(functools.reduce(merged, map(as_moments, chunks)))


def merged(a: Mapping[str, Moments], b: Mapping[str, Moments]) -> dict[str, Moments]:
    """The moments by name of two sets of networks together."""
    return {name: merge(each, b[name]) for name, each in a.items()}


def _by_field(total: Mapping[str, Moments]) -> Arrays:
    """The fields of moments as arrays, NAME.FIELD each."""
    return {f"{name}.{field}": leaf for name, each in total.items() for field, leaf in vars(each).items()}


def as_moments(arrays: Arrays) -> dict[str, Moments]:
    """The moments by name whose fields these arrays are."""
    fields = [field.name for field in dataclasses.fields(Moments)]
    found = [name.removesuffix(".count") for name in arrays if name.endswith(".count")]
    return {name: Moments(**{field: arrays[f"{name}.{field}"] for field in fields}) for name in found}


def _coordinates(cell: Cell) -> str:
    return " ".join(f"{name}={value}" for name, value in cell.coords.items())


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
