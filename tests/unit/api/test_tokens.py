"""The token file: made once, private, and refused when it is not."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from msm.api import TokenFile
from msm.kit.errors import Forbidden, Internal, Unauthenticated
from msm.resources.wire import TOKEN_FILE


def test_the_first_start_writes_a_private_random_token_and_the_second_reads_it(tmp_path: Path):
    first = TokenFile.open(tmp_path)
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert len(first.token) >= 43
    assert TokenFile.open(tmp_path).token == first.token
    assert [path.name for path in tmp_path.iterdir()] == [TOKEN_FILE]


def test_every_data_directory_has_its_own(tmp_path: Path):
    (tmp_path / "other").mkdir()
    assert TokenFile.open(tmp_path).token != TokenFile.open(tmp_path / "other").token


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_file_that_others_may_use_is_refused_with_the_remedy(tmp_path: Path, mode: int):
    path = TokenFile.open(tmp_path).path
    path.chmod(mode)
    with pytest.raises(Forbidden, match="chmod 600"):
        TokenFile.open(tmp_path)


@pytest.mark.parametrize("content", ["", "short\n", "\n" * 100])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: str):
    path = tmp_path / TOKEN_FILE
    path.touch(mode=0o600)
    path.write_text(content)
    with pytest.raises(Internal, match="no token"):
        TokenFile.open(tmp_path)


def test_of_many_first_starts_one_makes_the_token(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: TokenFile.open(tmp_path), range(32)))
    assert len({one.token for one in opened}) == 1


def test_only_the_token_itself_passes(tmp_path: Path):
    tokens = TokenFile.open(tmp_path)
    tokens.check(tokens.token)
    for wrong in (None, "", tokens.token[:-1], tokens.token + "x", tokens.token.swapcase(), "ä" * 10, "\udcff"):
        with pytest.raises(Unauthenticated):
            tokens.check(wrong)


def test_the_token_does_not_show_in_logs(tmp_path: Path):
    tokens = TokenFile.open(tmp_path)
    assert tokens.token not in repr(tokens)
