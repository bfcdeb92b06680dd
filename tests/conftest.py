"""A strict process: shapes checked against their annotations, four devices, no silent promotion of dtypes or ranks."""

import hypothesis
import jax
import jaxtyping
import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

with install_import_hook("mftadv", "tests.typecheck.check"):
    import mftadv  # noqa: F401

# compiling trips every per-example deadline
hypothesis.settings.register_profile("mftadv", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("mftadv")


@pytest.fixture
def unchecked():
    """What a user meets, whose process checks no annotations: the library's own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
