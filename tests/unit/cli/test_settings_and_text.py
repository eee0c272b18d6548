"""Settings from flags and environment; text for people."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.cli.text import clean, duration, one_line, size
from msm.kit.errors import InvalidInput
from msm.settings import load_settings, parse_bytes


def test_defaults_are_loopback_and_the_home_directory():
    settings = load_settings({}, {})
    assert settings.data_dir == Path("~/.msm").expanduser()
    assert (settings.host, settings.gateway_port, settings.api_port) == ("127.0.0.1", 8080, 8081)
    assert settings.workers is None


def test_flags_win_over_the_environment():
    environ = {"MSM_HOME": "/srv/a", "MSM_API_PORT": "1", "MSM_WORKERS": "3", "MSM_HOSTS": "Mesh.example, other"}
    settings = load_settings({"api_port": "2", "capacity_bytes": "4GiB", "workers": None}, environ)
    assert (settings.data_dir, settings.api_port, settings.workers) == (Path("/srv/a"), 2, 3)
    assert settings.capacity_bytes == 4 << 30
    assert settings.hosts == {"mesh.example", "other"}


@pytest.mark.parametrize(
    ("flags", "environ", "part"),
    [
        ({"api_port": "65536"}, {}, "--api-port: '65536'"),
        ({"capacity_bytes": "12XB"}, {}, "--capacity: '12XB'"),
        ({}, {"MSM_WORKERS": "0"}, "MSM_WORKERS: '0'"),
        ({}, {"MSM_WORKERS": "-1"}, "MSM_WORKERS: '-1'"),
        ({}, {"MSM_WORKERS": "0" * 20 + "1"}, "MSM_WORKERS"),
        ({}, {"MSM_JSON_LOGS": "maybe"}, "MSM_JSON_LOGS: 'maybe'"),
    ],
)
def test_a_wrong_setting_is_named_with_where_it_came_from(flags: dict[str, str], environ: dict[str, str], part: str):
    with pytest.raises(InvalidInput) as caught:
        load_settings(flags, environ)
    assert part in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("4GiB", 4 << 30),
        ("4gb", 4 * 10**9),
        ("1.5 MiB", 3 << 19),
        ("512k", 512_000),
        (" 2Gi ", 2 << 30),
        ("7B", 7),
    ],
)
def test_sizes_are_read(text: str, expected: int):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "1e9", "1PiB", "12XB", "nan", "1,5GiB", "٤", "9" * 30])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(InvalidInput):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(None, ""), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 20, "200 MiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes_are_written(count: int | None, expected: str):
    assert size(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, ""), (0.0032, "3.2 ms"), (0.5, "500 ms"), (4.2, "4.2 s"), (90, "90 s"), (900, "15 min"),
        (7500, "2 h 5 min"), (400_000, "4 d 15 h"),
    ],
)  # fmt: skip
def test_spans_are_written(seconds: float | None, expected: str):
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ä 漢 \u00a0", "plain ä 漢 \u00a0"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jx", "x"),
        ("a\x08\x7f\rb\u202ec", "abc"),
        ("two\n\tlines", "two\n\tlines"),
        ("\x1b", ""),
    ],
)
def test_terminal_control_is_removed(text: str, expected: str):
    assert clean(text) == expected


@given(st.text())
def test_nothing_that_is_left_can_steer_a_terminal(text: str):
    left = clean(text)
    assert all(char in "\n\t" or ord(char) >= 32 for char in left)
    assert not any("\x7f" <= char <= "\x9f" for char in left)
    assert len(one_line(text).splitlines()) <= 1
