"""The composition root: the only place that knows every part and puts them together."""

from msm.wiring.leftovers import stop_leftovers
from msm.wiring.run import run_node

__all__ = ["run_node", "stop_leftovers"]
