"""What kind of PyTorch archive a file is, told from the names in its zip directory without reading its pickles."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from msm.runtime.formats.base import head

Kind = Literal["script", "export", "pickle"]


def kind(file: Path) -> Kind | None:
    """`script` for TorchScript, `export` for torch.export, `pickle` for torch.save; None for anything else."""
    if head(file, 4) != b"PK\x03\x04":
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError):
        return None
    top = names[0].split("/", 1)[0] if names else ""
    inner = {name.removeprefix(top + "/") for name in names}
    if "archive_format" in inner and any(name.startswith("models/") for name in inner):
        return "export"
    if "serialized_exported_program.json" in names or "serialized_exported_program.json" in inner:
        return "export"
    if "data.pkl" not in inner:
        return None
    return "script" if "constants.pkl" in inner else "pickle"
