"""skops.io, imported without torch, which scikit-learn's walk through its own modules would bring in where it is installed.

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
