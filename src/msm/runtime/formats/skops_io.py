"""skops.io, imported without torch, which its walk through the modules of scikit-learn brings in where it is there.

torch takes seconds and hundreds of MiB and starts threads; no estimator stored by skops needs it.
"""

from __future__ import annotations

import sys

_ABSENT = "torch" not in sys.modules
if _ABSENT:
    sys.modules["torch"] = None  # type: ignore[assignment]  # the way to have an import fail
try:
    import skops.io as skops_io
finally:
    if _ABSENT:
        del sys.modules["torch"]

__all__ = ["skops_io"]
