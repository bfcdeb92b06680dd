"""Run the benchmarks, print their tables, and write a record."""

import argparse
import gc
import json
import os
from pathlib import Path

# JAX would take most of a GPU's memory before torch sees it
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# what is timed as a first call compiles
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax

from benchmarks.harness import environment, measure, table
from benchmarks.tasks import TASKS
from mftadv.sweep import available_cores

LEGEND = """Seconds. cores: processor time over time; much below the threads means that others use the machine.
floor: work that cannot be avoided, at the best rates of the same rounds (normals: of one plain call).
first: compiling included. differs by: from ours, relative to the largest entry.
Contenders take turns, round by round; ratios are of medians, with the quartiles of the ratios within a round."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--only", choices=TASKS, help="one task instead of all")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    options = parser.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", available_cores())  # what is not divided among them runs on the first
    record = {"environment": environment(), "quick": options.quick, "benchmarks": {}}
    for key, value in record["environment"].items():
        print(f"{key}: {value}")
    print(LEGEND)
    for name in [options.only] if options.only else TASKS:
        record["benchmarks"][name] = measure(TASKS[name](options.quick), judged=not options.quick)
        gc.collect()  # a gigabyte of weights before the next
        print("\n" + table(name, record["benchmarks"][name]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
