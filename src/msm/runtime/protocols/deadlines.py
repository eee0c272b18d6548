"""How long a caller waits, told by the header `x-request-timeout`. Pure; `grpc-timeout` is read in `oip_grpc`."""

from __future__ import annotations

import re
from typing import Final

from msm.kit.errors import DeadlineExceeded, InvalidInput
from msm.runtime.protocols.call import MAX_TIMEOUT_S

_FORM: Final = re.compile(rb"(\d{1,9}(?:\.\d{1,9})?)(us|ms|s|m|h)?")
_UNITS_S: Final = {b"us": 1e-6, b"ms": 1e-3, b"s": 1.0, b"m": 60.0, b"h": 3600.0}
LEAST_S: Final = 1e-6  # no call is answered in less


def seconds(text: bytes) -> float:
    """Seconds of an `x-request-timeout` header: a number, with a unit (us, ms, s, m, h) or in seconds.

    Limits beyond a day are a day. Raises InvalidInput for anything else, DeadlineExceeded for one that is over already.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise InvalidInput(
            "header x-request-timeout must be a number of seconds, or a number and a unit of us, ms, s, m, h",
            reason="invalid_timeout",
        )
    value = float(found[1]) * _UNITS_S[found[2] or b"s"]
    if value < LEAST_S:
        raise DeadlineExceeded("the deadline of the call was over when it came")
    return min(value, MAX_TIMEOUT_S)
