"""Many draws of a network: the only place with a vmap over draws, chunks and device meshes."""

from mftadv.sweep._cells import Cell
from mftadv.sweep._monte_carlo import Draws, draws, monte_carlo

__all__ = ["Cell", "Draws", "draws", "monte_carlo"]
