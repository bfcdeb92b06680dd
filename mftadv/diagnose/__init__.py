"""The reader's own model beside the theory.

`flax_linen` and `flax_nnx` hold a random network as a module of flax. They are imported by name, with the extra `flax`;
nothing else in this package imports flax.
"""
