"""Which form a REST body has, by its content type, and which one the answer is to have, by `accept`. Pure.

The Open Inference Protocol's own forms (JSON, binary data behind JSON) are in `oip_json`; the others are small modules,
each with a `decode(body, signature)` and an `encode(outputs)`. Their libraries are imported when a body of that form
comes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from msm.kit.errors import Unsupported
from msm.runtime.protocols import arrow_body, csv_body, image_body, raw_body
from msm.runtime.protocols.call import InferenceCall, Sent
from msm.runtime.protocols.tensors import Array
from msm.runtime.signature import Signature

OutputMap = Mapping[str, tuple[str, Array]]
# A form is what curl says of any body unless it is told; it is read as JSON like the others.
JSON_TYPES: Final = ("application/json", "application/x-www-form-urlencoded", "")
_TEXT: Final = ("application/json", "application/x-www-form-urlencoded", "text/csv", "")
_INLINE: Final = 256 * 1024  # reading this much takes about a millisecond


@dataclass(frozen=True, slots=True)
class Form:
    """A form of bodies.

    `module` is what its library is imported as, if it needs one, and `library` imports it. `slow`: reading one may
    take long for its size, so it belongs into a thread.
    """

    media_type: str
    decode: Callable[[bytes, Signature], dict[str, Sent]]
    encode: Callable[[OutputMap], bytes]
    module: str = ""
    library: Callable[[], object] | None = None
    slow: bool = False

    @property
    def loaded(self) -> bool:
        """Whether the library that it needs is there without the time that importing it takes."""
        return not self.module or self.module in sys.modules

    def load(self) -> None:
        """Import its library; takes up to seconds. Raises Unsupported naming the extra when it is not installed."""
        if self.library is not None:
            self.library()

    def read(self, body: bytes, signature: Signature) -> InferenceCall:
        """The request in `body`. Raises InvalidInput, or Unsupported when the signature does not allow the form."""
        return InferenceCall("", self.decode(body, signature))

    def in_thread(self, body: bytes) -> bool:
        """Whether reading `body` would hold up the event loop."""
        return self.slow or len(body) > _INLINE


RAW: Final = Form("application/octet-stream", raw_body.decode, raw_body.encode)
CSV: Final = Form("text/csv", csv_body.decode, csv_body.encode)
ARROW: Final = Form(
    "application/vnd.apache.arrow.stream", arrow_body.decode, arrow_body.encode, "pyarrow.ipc", arrow_body.library
)


def _image(kind: str) -> Form:
    read = partial(image_body.decode, kind=kind)
    return Form(f"image/{kind}", read, image_body.encode, "PIL.Image", image_body.library, slow=True)


PNG: Final = _image("png")
_FORMS: Final = {form.media_type: form for form in (RAW, CSV, ARROW, PNG)}


@lru_cache(maxsize=256)
def form_of(content_type: bytes) -> Form | None:
    """The form of a body, None for JSON. Raises Unsupported for a type, or a charset, that is not offered."""
    name, _, rest = content_type.decode("latin-1").lower().partition(";")
    name = name.strip()
    charset = rest.partition("charset=")[2].strip(' "')
    if charset in ("", "utf-8", "utf8") or name not in _TEXT:
        if name in JSON_TYPES:
            return None
        if name in _FORMS:
            return _FORMS[name]
        if name.startswith("image/"):
            return _image(name[6:])
    raise Unsupported(
        f"content-type {content_type[:100].decode('latin-1')!r} is not offered, send application/json in UTF-8",
        reason="wrong_content_type",
    )


@lru_cache(maxsize=256)
def answer_form(accept: bytes) -> Form | None:
    """The form that an `accept` header prefers among those offered, None for JSON (also when it names none of them)."""
    best: Form | None = None
    best_weight = 0.0
    for item in accept.decode("latin-1").lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                weight = _weight(parameter[2:])
        known = name in _FORMS or name in ("application/json", "application/*", "*/*")
        if known and weight > best_weight:
            best, best_weight = _FORMS.get(name), weight
    return best


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0
