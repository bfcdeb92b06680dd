"""The run-time checker of annotations: an int is a float, as PEP 484 has it; shapes agree within a call.

The import hook of jaxtyping decorates all functions, and inner ones whenever they are defined. Its own decorator binds
the arguments of each call in Python and checks them twice, which takes a tenth of the time of the tests; here the
checker looks at them once, in a context of jaxtyping, and a function without annotations is left as it is.
"""

import functools
import inspect
import typing

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped = jaxtyping.jaxtyped


def jaxtyped(*, typechecker):
    def decorate(function):
        hints = getattr(function, "__annotations__", {}).values()
        if not inspect.isfunction(function) or inspect.isgeneratorfunction(function) or any(map(_is_quoted, hints)):
            return _jaxtyped(function, typechecker=typechecker)
        return _checked(function, typechecker(function)) if hints else function

    return decorate


def _is_quoted(hint):
    """Whether an annotation names a class in quotes, which the checker may not find."""
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    return isinstance(hint, str | typing.ForwardRef) or any(map(_is_quoted, parts))


def _checked(function, checked):
    @functools.wraps(function)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        with _jaxtyped("context"):
            return checked(*args, **kwargs)

    return call


jaxtyping.jaxtyped = jaxtyped
