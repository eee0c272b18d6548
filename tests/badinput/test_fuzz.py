"""Every codec keeps its promise for 20,000 inputs that atheris makes up; its memory for the worst that are known."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from msm.kit.errors import MsmError
from tests.fuzz.codecs import CODECS

RUNS = int(os.environ.get("MSM_FUZZ_RUNS", "20000"))  # more of them for a long search
WITHIN_S = 110
SIZE = 1_000_000
TIMES = 20


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S + 10)
@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_refuses_or_takes_whatever_comes(codec: str, tmp_path: Path):
    for number, seed in enumerate(CODECS[codec].seeds):
        (tmp_path / str(number)).write_bytes(seed)
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz", codec, f"-runs={RUNS}", "-seed=1", "-max_len=2048", "-timeout=10",
            "-rss_limit_mb=2048", f"-artifact_prefix={tmp_path}/found-", str(tmp_path),
        ],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS} runs" in done.stderr


def _item(data: bytes, datatype: bytes = b"FP64", shape: bytes = b"[%d]" % (SIZE // 2)) -> bytes:
    return b'{"inputs":[{"name":"x","datatype":"%b","shape":%b,"data":%b}]}' % (datatype, shape, data)


WORST = {
    "json": [
        _item(b"[" + b",".join([b"1"] * (SIZE // 2)) + b"]"),
        _item(b"[" + b",".join([b"1"] * (SIZE // 2)) + b"]", b"INT64"),
        _item(b"[" + b",".join([b"[1]"] * (SIZE // 4)) + b"]", shape=b"[%d,1]" % (SIZE // 4)),
        _item(b"[" * SIZE),
        b'{"a":' * (SIZE // 5),
    ],
    "v1": [
        b'{"instances":[' + b",".join([b"[1,2,3,4]"] * (SIZE // 10)) + b"]}",
        b'{"instances":[' + b",".join([b'{"n":[1],"s":"a"}'] * (SIZE // 18)) + b"]}",
    ],
    "csv": [
        b"a,b,c,d\n" + b"1,2,3,4\n" * (SIZE // 8),
        b"a,b,c,d\n" + b' 1,2,3,"4"\n' * (SIZE // 11),
        b"n,s,b\n" + b"1,ab,1\n" * (SIZE // 7),
        b"," * SIZE,
    ],
    "raw": [bytes(SIZE)],
}


@pytest.mark.parametrize(("codec", "body"), [(name, body) for name, bodies in WORST.items() for body in bodies])
def test_memory_is_at_most_twenty_times_the_input(codec: str, body: bytes):
    tracemalloc.start()
    try:
        CODECS[codec].read(body)
    except MsmError:
        pass  # refused, at a price that is judged all the same
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= TIMES * len(body), f"{peak / len(body):.1f} times the input"
