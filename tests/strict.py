"""A strict process: shapes checked against their annotations, four devices, no silent promotion of dtypes or ranks."""

import collections
import gc
import os
from pathlib import Path

# Most of the time of most tests is compiling. XLA takes a third of it for programs that it does not optimise and whose
# loops its older emitters write, and less again where it does not divide each of these small programs into 32 parts for
# threads, which the other test processes need; it can only be told before its first computation. Benchmarks run
# optimised ones.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)

import chex
import hypothesis
import jax
import jaxtyping
import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401

# Compiled programs are shared between processes and runs.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_default_device", jax.devices()[0])  # networks are divided among all where a test says so
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

with install_import_hook("mftadv", "tests.typecheck.check"):
    import mftadv  # noqa: F401

# compiling trips every per-example deadline
hypothesis.settings.register_profile("mftadv", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("mftadv")


def pytest_collection_modifyitems(items):
    """Files with laws come first, then those with most slow tests: `--dist loadfile` deals out files in this order."""
    costs = collections.Counter()
    for item in items:
        costs[item.path] += 20 * ("law" in item.keywords) + ("slow" in item.keywords)
    items.sort(key=lambda item: -costs[item.path])


def pytest_collection_finish():
    """The garbage collector would go over all that is imported again and again: tracing makes many small objects."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(200_000, 50, 100)


@pytest.fixture
def unchecked():
    """What a user meets, whose process checks no annotations: the library's own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def not_rendered(monkeypatch):
    """Figures of runs are made but stored as empty files: rendering them in three formats takes seconds a run."""
    monkeypatch.setattr(
        "mftadv.report.figure_files",
        lambda name, figure: [(f"{name}.{suffix}", b"") for suffix in ("png", "pdf", "svg")],
    )


@pytest.fixture
def optimised(monkeypatch):
    """Programs of `monte_carlo`, sweeps and runs are optimised, where time goes into running and not into compiling."""
    compiled, options = jax.stages.Lowered.compile, {"xla_backend_optimization_level": 1}
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda lowered: compiled(lowered, options))


@pytest.fixture(autouse=True)
def traces_counted_anew():
    """chex.assert_max_traces counts the traces of one test."""
    chex.clear_trace_counter()


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_file():
    """Compiled programs are freed after each file: a process may have only so many pieces of memory mapped."""
    yield
    jax.clear_caches()
