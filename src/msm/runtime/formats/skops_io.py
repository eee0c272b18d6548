"""skops.io, imported without torch, which its walk through the modules of scikit-learn brings in where it is there.

torch takes seconds and hundreds of MiB and starts threads; no estimator stored by skops needs it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder

__all__ = ["skops_io"]


class _Hidden(MetaPathFinder):
    """Lets imports of one module fail in the thread that made this."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._thread = threading.get_ident()

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == self._module and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{fullname} is not wanted here", name=fullname)


@contextmanager
def _without(module: str) -> Iterator[None]:
    hidden = _Hidden(module)
    sys.meta_path.insert(0, hidden)
    try:
        yield
    finally:
        sys.meta_path.remove(hidden)


with _without("torch"):
    import skops.io as skops_io
