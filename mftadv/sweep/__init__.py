"""Many draws of a network: the only place with a vmap over draws, chunks and device meshes."""

from mftadv.sweep._cells import Cell, Dataset, Observer, Segmented, identity_of_draws, import_xarray
from mftadv.sweep._compute import as_shard, compute, shares
from mftadv.sweep._dataset import dataset, moments_of, sample_of
from mftadv.sweep._memory import all_devices, available_cores, check_devices, enough_devices, host_memory, memory
from mftadv.sweep._monte_carlo import Draws, draws, monte_carlo
from mftadv.sweep._plan import InMemory, Plan, plan_cells
from mftadv.sweep._program import DEEPEST
from mftadv.sweep._sweep import describe, in_bytes, sweep

__all__ = [
    "DEEPEST",
    "Cell",
    "Dataset",
    "Draws",
    "InMemory",
    "Observer",
    "Plan",
    "Segmented",
    "all_devices",
    "as_shard",
    "available_cores",
    "check_devices",
    "compute",
    "dataset",
    "describe",
    "draws",
    "enough_devices",
    "host_memory",
    "identity_of_draws",
    "import_xarray",
    "in_bytes",
    "memory",
    "moments_of",
    "monte_carlo",
    "plan_cells",
    "sample_of",
    "shares",
    "sweep",
]
