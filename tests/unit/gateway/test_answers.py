"""Errors in both protocols."""

from __future__ import annotations

import json

import pytest

from msm.gateway.answers import error_answer, is_grpc
from msm.kit import errors


@pytest.mark.parametrize(
    ("error", "http", "grpc", "retry_after"),
    [
        (errors.InvalidInput("x"), 400, 3, None),
        (errors.InputTooLarge("x"), 413, 8, None),
        (errors.Unauthenticated("x"), 401, 16, None),
        (errors.Forbidden("x"), 403, 7, None),
        (errors.NotFound("x"), 404, 5, None),
        (errors.Conflict("x"), 409, 10, None),
        (errors.Unsupported("x"), 415, 12, None),
        (errors.Overloaded("x", retry_after_s=2.1), 429, 8, "3"),
        (errors.Unavailable("x", retry_after_s=0), 503, 14, "1"),
        (errors.LoadFailed("x"), 503, 14, "1"),
        (errors.DeadlineExceeded("x"), 504, 4, None),
        (errors.Internal("x"), 500, 13, None),
        (errors.MsmError("x"), 500, 13, None),
    ],
)
def test_each_error_has_its_status_in_both_protocols(error, http, grpc, retry_after):
    answer = error_answer(error)
    assert (answer.http_status, answer.grpc_status, answer.retry_after) == (http, grpc, retry_after)
    assert json.loads(answer.body) == {"error": "x", "code": error.reason}


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [("application/grpc", True), ("application/grpc+proto", True), ("application/json", False), ("", False)],
)
def test_a_grpc_caller_is_known_by_its_content_type(content_type, expected):
    assert is_grpc(content_type) is expected
