"""What the formats that use the transformers library share: it must never ask the network nor run foreign code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from msm.kit.errors import LoadFailed, MsmError, Unsupported
from msm.runtime.formats.base import LoadOptions, files, first_line, need_trust, read_json

_OFFLINE: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def library() -> Any:
    """The transformers library, silent and offline. Raises ImportError."""
    for name, value in _OFFLINE.items():
        os.environ.setdefault(name, value)
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def check_folder(folder: Path, options: LoadOptions) -> dict[str, Any]:
    """The `config.json` of a folder whose weights may be read.

    Raises Unsupported when it needs code of its own, Forbidden when its weights are pickles and the version is not
    trusted, LoadFailed when there are none.
    """
    config = read_json(folder / "config.json")
    if not config:
        raise LoadFailed("the folder has no config.json, or a broken one", reason="corrupt_artifact")
    if "auto_map" in config:
        raise Unsupported(
            "the model comes with Python code of its own (auto_map in config.json), which is never run",
            reason="remote_code",
        )
    names = [file.name for file in files(folder)]
    if not any(name.endswith(".safetensors") for name in names):
        if not any(name.endswith(".bin") for name in names):
            raise LoadFailed("the folder holds no weights (model.safetensors)", reason="wrong_format")
        need_trust(options, "a model whose weights are a pickle (pytorch_model.bin; safetensors would be safe)")
    return config


def pretrained(loader: Any, folder: Path, options: LoadOptions) -> Any:
    """The network in a folder, by one of the library's Auto classes, in FP32, ready to predict. Raises LoadFailed."""
    safe = any(file.name.endswith(".safetensors") for file in files(folder))
    try:
        network, info = loader.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=safe, output_loading_info=True
        )
    except (MsmError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise LoadFailed(f"the weights could not be read: {first_line(error)}", reason="corrupt_artifact") from error
    missing = sorted(info.get("missing_keys") or ())
    # A pooler that the task does not use may be absent; any other layer would answer by chance.
    missing = [key for key in missing if "pooler" not in key and "position_ids" not in key]
    if missing:
        raise LoadFailed(
            f"the weights lack {', '.join(missing[:3])[:200]}: the network was not stored for this task",
            reason="corrupt_artifact",
        )
    network = network.float().eval()
    for tensor in (*network.parameters(), *network.buffers()):
        # Out of the mapped file into memory of the process: else the model would seem to cost nothing.
        tensor.data = tensor.data.clone()
    return network
