"""The classes of the library that implement an interface, so that a contract test can require them all."""

import inspect


def implementations(interface: type) -> set[str]:
    """The names of the concrete subclasses, at any depth."""
    below = interface.__subclasses__()
    names = {kind.__name__ for kind in below if kind.__module__.startswith("mftadv.") and not inspect.isabstract(kind)}
    return names.union(*map(implementations, below))
