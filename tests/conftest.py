"""A strict process: four virtual devices, no silent promotion of dtypes or ranks."""

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# compiling trips every per-example deadline
hypothesis.settings.register_profile("mftadv", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("mftadv")
