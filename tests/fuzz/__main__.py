"""`python -m tests.fuzz CODEC [libFuzzer options] [CORPUS]`: ends with an error at the first broken promise."""

from __future__ import annotations

import sys
import tracemalloc
import warnings

import atheris

with atheris.instrument_imports(include=["msm.runtime.protocols"]):
    from tests.fuzz.codecs import CODECS, FRAME_REFUSALS, REFUSALS

TIMES = 20  # memory of a codec for each byte of its input
ALLOWANCE = 512 * 1024  # caches, decoders made on first use


def main() -> None:
    """Fuzz one codec."""
    name = sys.argv.pop(1)
    codec = CODECS[name]
    refusals = FRAME_REFUSALS if name in ("frame", "grpc") else REFUSALS
    warnings.simplefilter("error")
    if not codec.unbounded:
        tracemalloc.start()

    def one(data: bytes) -> None:
        if not codec.unbounded:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
        try:
            codec.read(data)
        except refusals as error:
            if not 0 < len(error.message) <= 1000:
                raise AssertionError(error.message[:2000]) from error
        if not codec.unbounded:
            used = tracemalloc.get_traced_memory()[1] - before
            assert used <= TIMES * len(data) + ALLOWANCE, f"{used} bytes for {len(data)}"

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


main()
