"""Artifacts that are not plain files and folders."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from bench._models import write_network
from tests.badinput.makers import Maker, registered_in

MAKERS: dict[str, Maker] = {}
maker = registered_in(MAKERS)


@maker
def symlink_out(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    (folder / "secret").symlink_to("/etc/passwd")
    return folder


@maker
def symlink_to_a_folder(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    (folder / "more").symlink_to("/etc")
    return folder


@maker
def fifo(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    os.mkfifo(folder / "pipe")
    return folder


@maker
def fifo_itself(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


@maker
def unix_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(folder, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{here}/s")
        finally:
            os.close(here)
    return folder


@maker
def names_that_clash(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    write_network(folder / "MODEL.onnx", 1)
    return folder


@maker
def name_not_utf8(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe"))).write_bytes(b"x")
    return folder


@maker
def twenty_folders_deep(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    deep = folder.joinpath(*["d"] * 20)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"x")
    return folder


@maker
def ten_thousand_files(folder: Path) -> Path:
    for number in range(10_001):
        (folder / f"f{number}").touch()
    return folder


@maker
def name_with_a_backslash(folder: Path) -> Path:
    write_network(folder / "model.onnx", 1)
    (folder / "..\\evil").write_bytes(b"x")
    return folder


@maker
def missing(folder: Path) -> Path:
    return folder / "nothing.onnx"
