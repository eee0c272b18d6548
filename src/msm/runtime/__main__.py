"""Entry of the worker process: `python -m msm.runtime --id w0 --data PATH --control PATH --blackbox PATH`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

# One thread of computation for each call: a node has a worker for each core. Read by the libraries when they start.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# A worker serves what it was given: no library may ask the network for more, or report to it.
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1" if _name.startswith(("HF", "TRANS")) else "true")

import uvloop  # noqa: E402

from msm.runtime import logs, server  # noqa: E402


def _options(arguments: list[str]) -> server.WorkerOptions:
    parser = argparse.ArgumentParser("python -m msm.runtime", description="A model worker of Model Service Mesh.")
    parser.add_argument("--id", required=True, help="name of this worker, told in every answer")
    parser.add_argument("--data", required=True, type=Path, help="unix socket of the inference protocols")
    parser.add_argument("--control", required=True, type=Path, help="unix socket of the node process")
    parser.add_argument("--blackbox", required=True, type=Path, help="file that names what runs right now")
    parser.add_argument("--max-body-bytes", type=int, default=server.MAX_BODY_BYTES)
    parser.add_argument("--threads", type=int, default=4, help="slow predictions that may run at once")
    parser.add_argument("--drain-s", type=float, default=server.DRAIN_S, help="longest wait for answers at the end")
    found = parser.parse_args(arguments)
    return server.WorkerOptions(
        found.id, found.data, found.control, found.blackbox, found.max_body_bytes, found.threads, found.drain_s
    )


def main(arguments: list[str]) -> None:
    """Run a worker until SIGTERM."""
    options = _options(arguments)
    logs.set_up(options.id)
    server.prepare_process()
    try:
        uvloop.run(server.run(options))
    except BaseException:
        logging.getLogger(__name__).critical("the worker ends by an error", exc_info=True)
        logging.shutdown()
        os._exit(1)
    logging.shutdown()
    # Threads may be stuck in a model, and destructors of native libraries are not worth waiting for.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
