"""What a person may set: flags first, then the environment (MSM_…), then defaults. The one reader of os.environ."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from msm.kit.errors import InvalidInput

DEFAULT_HOME = "~/.msm"
GATEWAY_PORT = 8080
API_PORT = 8081

_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "kib": 2**10, "ki": 2**10,
    "m": 10**6, "mb": 10**6, "mib": 2**20, "mi": 2**20,
    "g": 10**9, "gb": 10**9, "gib": 2**30, "gi": 2**30,
    "t": 10**12, "tb": 10**12, "tib": 2**40, "ti": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{0,3})")
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a node is started with.

    `data_dir` holds the store, artifacts, logs, the token and, while a node runs, how to reach it. None means that
    the node chooses: `workers` one a core, `capacity_bytes` a share of the memory, `node_name` the machine's name,
    `json_logs` by whether a person is looking. `hosts` are names besides the loopback's by which the API may be
    called. `file_roots` (None: any) and `private_hosts` ("host:port") bound where artifacts may come from.
    """

    data_dir: Path
    host: str = "127.0.0.1"
    gateway_port: int = GATEWAY_PORT
    api_port: int = API_PORT
    workers: int | None = None
    capacity_bytes: int | None = None
    node_name: str | None = None
    hosts: frozenset[str] = frozenset()
    file_roots: tuple[str, ...] | None = None
    private_hosts: frozenset[str] = frozenset()
    s3_endpoint: str | None = None
    s3_region: str | None = None
    json_logs: bool | None = None


def parse_bytes(text: str) -> int:
    """Bytes from "4GiB", "512 MB", "1.5g" or a plain number; Ki… are powers of 1024. Raises InvalidInput."""
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise InvalidInput(f"'{text}' is not a size: a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB is")
    size = int(float(found[1]) * unit)
    if size <= 0:
        raise InvalidInput(f"the size '{text}' is nothing; it must be at least one byte")
    return size


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
            raise InvalidInput(f"'{text}' is not a whole number from {least} to {most}")
        return int(text)

    return parse


def _truth(text: str) -> bool:
    if text.lower() not in _WORDS:
        raise InvalidInput(f"'{text}' is neither true nor false")
    return _WORDS[text.lower()]


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


_READ: dict[str, tuple[str, Callable[[str], Any]]] = {
    "data_dir": ("MSM_HOME", _path),
    "host": ("MSM_HOST", str),
    "gateway_port": ("MSM_GATEWAY_PORT", _whole(0, 65535)),
    "api_port": ("MSM_API_PORT", _whole(0, 65535)),
    "workers": ("MSM_WORKERS", _whole(1, 1000)),
    "capacity_bytes": ("MSM_CAPACITY", parse_bytes),
    "node_name": ("MSM_NODE_NAME", str),
    "hosts": ("MSM_HOSTS", lambda text: frozenset(item.lower() for item in _items(text))),
    "file_roots": ("MSM_FILE_ROOTS", lambda text: tuple(_items(text))),
    "private_hosts": ("MSM_PRIVATE_HOSTS", lambda text: frozenset(_items(text))),
    "s3_endpoint": ("MSM_S3_ENDPOINT", str),
    "s3_region": ("MSM_S3_REGION", str),
    "json_logs": ("MSM_JSON_LOGS", _truth),
}


def load_settings(flags: Mapping[str, str | None], environ: Mapping[str, str] | None = None) -> Settings:
    """The settings from flags (None: not given) and the environment. Raises InvalidInput naming flag or variable."""
    values: dict[str, Any] = {"data_dir": _path(DEFAULT_HOME)}
    environment = os.environ if environ is None else environ
    assert set(_READ) == {field.name for field in fields(Settings)}, "every setting has its variable"
    for name, (variable, parse) in _READ.items():
        flag = flags.get(name)
        text = flag if flag is not None else environment.get(variable)
        if text is None or text == "":
            continue
        source = variable if flag is None else f"--{name.removesuffix('_bytes').replace('_', '-')}"
        try:
            values[name] = parse(text)
        except InvalidInput as error:
            raise InvalidInput(f"{source}: {error.message}") from error
    return Settings(**values)


def data_dir(flag: str | None = None) -> Path:
    """The data directory that a command is about."""
    return load_settings({"data_dir": flag}, {"MSM_HOME": os.environ.get("MSM_HOME", "")}).data_dir
