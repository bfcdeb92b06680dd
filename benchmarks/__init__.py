"""Timings of mftadv beside PyTorch, with the goal each must meet: `python -m benchmarks`."""
