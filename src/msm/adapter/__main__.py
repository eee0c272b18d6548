"""Entry of the adapter: `python -m msm.adapter --id r0 --data PATH --control PATH --blackbox PATH --server FILE
--work DIR`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import uvloop

from msm.adapter.server import AdapterOptions, run
from msm.adapter.spec import read_spec
from msm.kit.errors import MsmError
from msm.runtime import logs, memory


def _options(arguments: list[str]) -> AdapterOptions:
    parser = argparse.ArgumentParser("python -m msm.adapter", description="Drives an external model server.")
    parser.add_argument("--id", required=True, help="name of this worker, told in every answer")
    parser.add_argument("--data", required=True, type=Path, help="unix socket of the inference protocols")
    parser.add_argument("--control", required=True, type=Path, help="unix socket of the node process")
    parser.add_argument("--blackbox", required=True, type=Path, help="file that names what runs right now")
    parser.add_argument("--server", required=True, type=Path, help="file that describes the server")
    parser.add_argument("--work", required=True, type=Path, help="folder of this adapter")
    found = parser.parse_args(arguments)
    return AdapterOptions(found.id, found.data, found.control, found.blackbox, read_spec(found.server), found.work)


def main(arguments: list[str]) -> None:
    """Run an adapter until SIGTERM, or until its server ends."""
    options = _options(arguments)
    logs.set_up(options.id)
    memory.limit_arenas()
    status = 0
    try:
        uvloop.run(run(options))
    except MsmError as error:
        logging.getLogger(__name__).critical(error.message)
        status = 3
    except BaseException:
        logging.getLogger(__name__).critical("the adapter ends by an error", exc_info=True)
        status = 1
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
