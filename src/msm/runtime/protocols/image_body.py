"""Pictures (`image/png`, `image/jpeg`, ...) as the one tensor of a model, and one output as PNG.

The input is UINT8 or FP32 of shape [1 or -1, H, W, C] or [1 or -1, C, H, W], C being 1, 3 or 4. Values are those of
the file, 0 to 255, also as FP32: nothing is resized, scaled, turned (EXIF) or blended. A picture with fewer colours
than the model takes is spread (grey to RGB, no alpha to opaque); one with more is refused.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import numpy as np

from msm.kit.errors import InputTooLarge, InvalidInput, Unsupported
from msm.runtime.protocols import call
from msm.runtime.protocols.call import Sent
from msm.runtime.protocols.raw_body import single_input, single_output
from msm.runtime.protocols.tensors import DTYPES, Array
from msm.runtime.signature import Signature, Tensor

MAX_PIXELS: Final = 4096 * 4096
FORMATS: Final = {"png": "PNG", "jpeg": "JPEG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF"}
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
_COLOURS: Final = {
    "1": 1, "L": 1, "LA": 4, "P": 3, "PA": 4, "RGB": 3, "RGBA": 4, "RGBX": 3, "CMYK": 3, "YCbCr": 3,
}  # fmt: skip


def library() -> Any:
    """Pillow's Image module. Raises Unsupported naming the extra when it is not installed."""
    try:
        return import_module("PIL.Image")
    except ImportError as error:
        raise Unsupported(
            "image bodies need Pillow: install model-service-mesh[image]", reason="form_not_installed"
        ) from error


def decode(body: bytes, signature: Signature, kind: str = "*") -> dict[str, Sent]:
    """The pixels as the input of the signature; `kind` is the subtype that was named (`png`), or `*` for any.

    Raises InvalidInput for what is no such picture or of another size, InputTooLarge beyond MAX_PIXELS, Unsupported
    for a kind that is not offered, a model that takes no picture, or without Pillow.
    """
    if kind != "*" and kind not in FORMATS:
        raise Unsupported(
            f"image/{call.told(kind[:50])} is not offered, only {', '.join(FORMATS)}", reason="wrong_content_type"
        )
    tensor = single_input(signature, "an image")
    layout = _layout(tensor, kind)
    image = library()
    formats = tuple(set(FORMATS.values())) if kind == "*" else (FORMATS[kind],)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are judged below, and of broken metadata
            with image.open(io.BytesIO(body), formats=formats) as picture:
                array = _pixels(picture, tensor, layout)
    except image.DecompressionBombError as error:
        raise InputTooLarge(f"the image has more than {MAX_PIXELS} pixels") from error
    except (InvalidInput, MemoryError):
        raise
    except Exception as error:  # the readers of broken files raise nearly anything
        told = "image" if kind == "*" else f"image/{kind}"
        raise InvalidInput(f"the body is not a readable {told}", reason="invalid_image") from error
    return {tensor.name: Sent(tensor.datatype, array)}


def _layout(tensor: Tensor, kind: str) -> tuple[int, bool]:
    """Channels, and whether they stand before height and width. Raises Unsupported for what is no picture."""
    shape = tensor.shape
    if tensor.datatype in ("UINT8", "FP32") and len(shape) == 4 and shape[0] in (-1, 1):
        if shape[3] in _MODES:
            return shape[3], False
        if shape[1] in _MODES:
            return shape[1], True
    raise Unsupported(
        f"image/{kind}: input {tensor.name!r} of {tensor.datatype} has shape {list(shape)}, which is no picture "
        "(UINT8 or FP32, [1, height, width, channels] or [1, channels, height, width]): send application/json",
        reason="form_not_offered",
    )


def _pixels(picture: Any, tensor: Tensor, layout: tuple[int, bool]) -> Array:
    channels, first = layout
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise InputTooLarge(f"the image has {width} x {height} pixels, the limit is {MAX_PIXELS}")
    shape = (1, channels, height, width) if first else (1, height, width, channels)
    if not tensor.allows(shape):
        raise InvalidInput(
            f"input {tensor.name!r} must have shape {list(tensor.shape)}, the image has {height} rows of {width} "
            f"pixels (shape {list(shape)})",
            reason="shape_mismatch",
        )
    has = 4 if "transparency" in picture.info else _COLOURS.get(picture.mode)
    if has is None or has > channels:
        raise InvalidInput(
            f"input {tensor.name!r} takes {channels} channels of 8 bits, the image is of mode {picture.mode}"
            f"{' with transparency' if has == 4 else ''}",
            reason="wrong_channels",
        )
    values = np.asarray(picture.convert(_MODES[channels]), np.uint8).reshape(1, height, width, channels)
    if first:
        values = values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values, DTYPES[tensor.datatype])


def encode(outputs: Mapping[str, tuple[str, Array]]) -> bytes:
    """The only output as PNG: UINT8 of shape [1, H, W, C] or [1, C, H, W]. Raises InvalidInput for any other."""
    name, datatype, array = single_output(outputs, "image/png")
    image = library()
    values = array
    if datatype == "UINT8" and array.ndim == 4 and array.shape[0] == 1 and array.size:
        if array.shape[3] not in _MODES and array.shape[1] in _MODES:
            values = array.transpose(0, 2, 3, 1)
        if values.shape[3] in _MODES:
            pixels = np.ascontiguousarray(values[0, :, :, 0] if values.shape[3] == 1 else values[0])
            out = io.BytesIO()
            image.fromarray(pixels).save(out, "PNG")
            return out.getvalue()
    raise InvalidInput(
        f"output {name!r} of {datatype} has shape {list(array.shape)}, which is no picture: accept application/json",
        reason="output_not_image",
    )
