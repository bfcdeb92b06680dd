"""The law of a random network, and the small mathematics every stage shares.

Axis legend of all shapes in this package: d input, K output, N width, L depth, B inputs in a block.
"""

import dataclasses
import math
import numbers
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

__all__ = ["BLOCKS", "NetworkSpec", "check_exponent", "check_key", "dual_exponent", "key_for"]

BLOCKS = ("vanilla", "residual", "signed")
LARGEST = 2**31 - 1  # steps, networks of a chunk, and positions in an array, which are counted in int32

_SHAPE_FIELDS = ("input_dim", "output_dim", "width", "depth")
_LEAF_FIELDS = ("weight_variance", "bias_variance", "positive_slope", "negative_slope")
_STATIC_FIELDS = (*_SHAPE_FIELDS, "block")


def concrete(value: Any) -> np.ndarray | None:
    """The value as NumPy, or None where there is nothing to check yet (a tracer)."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def traced_arrays(operands: Any) -> Any:
    """A pytree to call a function of a custom derivative with: under a vmap JAX refuses NumPy arrays there."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if isinstance(leaf, Tracer) else leaf, operands)


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """The law of a random ReLU-like network.

    h_0 = P_in x;  h_l = e h_{l-1} + S_l phi(W_l h_{l-1} + b_l);  f(x) = P_out h_L, with phi(z) = u z for z >= 0
    and v z below; e = 0 and S = 1 for "vanilla", e = 1 and S = 1 for "residual", e = 1 and S frozen independent
    random signs for "signed". Entries are Gaussian: P_in N(0, 1/d), W_l N(0, s/N), b_l N(0, b2), P_out N(0, 1/N).

    The class is a pytree: shapes and `block` are static, the variances and slopes are leaves, so that changing a
    leaf never recompiles, and closed forms are differentiated with respect to them. A leaf may be an array, for a
    sweep in one program: `jax.vmap(function, (None, spec.in_axes))(key, spec)`.

    Args:
        input_dim: d >= 1.
        output_dim: K >= 1.
        width: N >= 1.
        depth: L >= 1, the number of hidden layers.
        weight_variance: s >= 0, the variance of a weight times N.
        bias_variance: b2 >= 0, the variance of a bias.
        positive_slope: u, the slope of phi on z >= 0.
        negative_slope: v, the slope of phi on z < 0; u and v are not both zero.
        block: "vanilla", "residual" or "signed".

    Raises:
        ValueError: an argument is outside its range; arrays (the leaves of a sweep) are checked entry by entry.

    Source: Kumano et al. 2023, definition of the networks; the "signed" block is this project's.
    """

    input_dim: int
    output_dim: int
    width: int
    depth: int
    weight_variance: Any = 2.0
    bias_variance: Any = 0.0
    positive_slope: Any = 1.0
    negative_slope: Any = 0.0
    block: str = "vanilla"

    def __post_init__(self):
        for name in _SHAPE_FIELDS:
            object.__setattr__(self, name, check_positive(name, getattr(self, name)))
        if self.block not in BLOCKS:
            raise ValueError(f"block: expected one of {', '.join(BLOCKS)}, got {self.block!r}")
        for name in _LEAF_FIELDS:
            value = getattr(self, name)
            if isinstance(value, numbers.Real):
                object.__setattr__(self, name, value := float(value))
            elif isinstance(value, np.ndarray | jax.Array) and jnp.issubdtype(value.dtype, np.integer):
                object.__setattr__(self, name, value := jnp.asarray(value, float))
            if isinstance(value, list | tuple):
                raise ValueError(f"{name}: expected a number or an array, got {value!r}")
            known = concrete(value)
            if known is None:
                continue
            expected = "a finite number" if name.endswith("slope") else "a finite number >= 0"
            valid = jnp.issubdtype(known.dtype, np.floating) and np.all(np.isfinite(known))
            if not valid or (name.endswith("variance") and np.any(known < 0)):
                raise ValueError(f"{name}: expected {expected}, got {value!r}")
        positive, negative = concrete(self.positive_slope), concrete(self.negative_slope)
        if positive is not None and negative is not None and np.any((positive == 0) & (negative == 0)):
            raise ValueError("positive_slope, negative_slope: expected at least one to be nonzero, got 0 and 0")

    @property
    def has_shortcut(self) -> bool:
        """Whether a block adds its input to its branch (e = 1)."""
        return self.block != "vanilla"

    @property
    def in_axes(self) -> "NetworkSpec":
        """The spec as `in_axes` of a vmap: 0 for each leaf that is an array with an axis, None for every number."""
        return jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, self)

    def replace(self, **changes: Any) -> "NetworkSpec":
        """The same spec with other values of the named fields.

        Raises:
            ValueError: as for the constructor, or there is no such field.
        """
        if unknown := changes.keys() - {*_STATIC_FIELDS, *_LEAF_FIELDS}:
            raise ValueError(f"{min(unknown)}: expected a field of NetworkSpec, got none of that name")
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        fields = (f"{field.name}={_brief(getattr(self, field.name))}" for field in dataclasses.fields(self))
        return f"NetworkSpec({', '.join(fields)})"

    def tree_flatten_with_keys(self):
        children = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in _LEAF_FIELDS]
        return children, tuple(getattr(self, name) for name in _STATIC_FIELDS)

    @classmethod
    def tree_unflatten(cls, static, leaves):
        # Past the constructor: transformations rebuild specs around tracers, None, and gradients such as -4.0.
        spec = object.__new__(cls)
        for name, value in (*zip(_STATIC_FIELDS, static, strict=True), *zip(_LEAF_FIELDS, leaves, strict=True)):
            object.__setattr__(spec, name, value)
        return spec


def _brief(value: Any) -> str:
    """A number as it is, an array or a tracer by its type and shape."""
    if isinstance(value, Tracer) or np.ndim(value):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value.item() if isinstance(value, np.ndarray | np.generic | jax.Array) else value)


def check_key(key: Any) -> None:
    """Refuse what is not one JAX key.

    Raises:
        ValueError: `key` is a seed, a raw or batched key, or something else.
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        got = "a NetworkSpec (the key comes first)" if isinstance(key, NetworkSpec) else repr(key)
        raise ValueError(f"key: expected a key such as jax.random.key(0), got {got}")
    if key.ndim:
        raise ValueError(f"key: expected one key, got {list(key.shape)} of them; jax.vmap takes many")


def key_for(function: str, key: jax.Array) -> jax.Array:
    """The key from which a function of this package draws when it is given `key`.

    Its own fold keeps its draws independent of those of other functions, and of the reader's `split(key)` and
    `fold_in(key, i)`, when one key is used for several things.

    Raises:
        ValueError: `key` is not one JAX key.
    """
    check_key(key)
    return fold_in_loop(key, [[zlib.crc32(function.encode())]])[0]


def fold_in_loop(key: jax.Array, numbers: Any) -> jax.Array:
    """The keys [T] that come of folding each row of numbers [T, M] into a key, one number after the other.

    In a loop: a compiler that fuses a key's derivation into a draw repeats it for every entry drawn. The loop has two
    turns at least, since one of a single turn is taken apart. The words of a key come out separately: concatenated
    inside a batched loop, each would repeat the derivation.
    """

    def derived(row):
        folded = key
        for number in row:
            folded = jax.random.fold_in(folded, number)
        return tuple(jax.random.key_data(folded))

    rows = jnp.asarray(numbers, jnp.uint32)
    words = jax.lax.map(derived, rows if len(rows) > 1 else jnp.repeat(rows, 2, axis=0))
    return jax.random.wrap_key_data(jnp.stack(words, -1)[: len(rows)], impl=jax.random.key_impl(key))


def check_positive(name: str, value: int, most: int | None = None) -> int:
    """Return a positive integer, of at most `most`, as Python's.

    Raises:
        ValueError: `value` is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    if most is not None and value > most:
        raise ValueError(f"{name}: expected at most {most}, got {value}")
    return int(value)


def representable(value: Any, dtype: Any) -> bool:
    """Whether a number is >= 0 and neither overflows in the dtype nor is lost in it."""
    limits = jnp.finfo(dtype)
    return bool(value == 0 or float(limits.tiny) <= value <= float(limits.max))


def check_exponent(name: str, value: float) -> float:
    """Return the exponent of an lp norm as a float.

    Raises:
        ValueError: `value` is not a number in [1, inf].
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not value >= 1:
        hint = "; math.inf is such a number" if isinstance(value, str) else ""
        raise ValueError(f"{name}: expected a number in [1, inf], got {value!r}{hint}")
    return float(value)


def dual_exponent(p: float) -> float:
    """The exponent p* with 1/p + 1/p* = 1.

    Raises:
        ValueError: `p` is not a number in [1, inf].
    """
    p = check_exponent("p", p)
    if p == 1:
        return math.inf
    return 1.0 if p == math.inf else p / (p - 1)
