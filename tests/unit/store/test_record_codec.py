"""Records survive the way into bytes and back, and nothing else is taken for one."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.kit.errors import InvalidInput
from msm.resources.meta import ObjectKey
from msm.store import Damaged
from msm.store.codec import DEFLATED, PLAIN, Codec
from msm.store.keys import object_of, res_key, rev_key, status_key
from msm.store.values import MAX_KEY_BYTES, prefix_end

CODEC: Codec[dict[str, str]] = Codec(dict[str, str])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@given(st.dictionaries(TEXT, TEXT, max_size=40))
def test_a_record_reads_back_as_it_was(record):
    assert CODEC.decode(CODEC.encode(record)) == record


@pytest.mark.parametrize(("size", "how"), [(10, PLAIN), (5000, DEFLATED)])
def test_large_records_are_deflated(size, how):
    data = CODEC.encode({"a": "x" * size})
    assert data[:1] == how
    assert len(data) < 1100


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"j",
        b"j{",
        b'j{"a": 1}',
        b"?{}",
        b"zjunk",
        DEFLATED + zlib.compress(b"{}")[:-3],
        DEFLATED + zlib.compress(b"\xff\xfe"),
    ],
)
def test_anything_else_is_damage(data):
    with pytest.raises(Damaged):
        CODEC.decode(data)


def test_text_that_is_not_unicode_is_refused():
    with pytest.raises(InvalidInput):
        CODEC.encode({"a": "\ud800"})


KEYS = st.binary(min_size=1, max_size=MAX_KEY_BYTES)


@given(st.binary(max_size=3), KEYS)
def test_a_prefix_ends_after_all_its_keys_and_before_all_others(prefix, key):
    inside = prefix <= key < prefix_end(prefix)
    assert inside == key.startswith(prefix)


def test_keys_of_objects_read_back_and_others_do_not():
    key = ObjectKey("Model", "team", "iris.v2")
    assert object_of(res_key(key)) == object_of(status_key(key)) == key
    assert object_of(rev_key(key, 3)) is None
    assert object_of(b"/msm/res/~gen") is None
    assert rev_key(key, 3) < rev_key(key, 20)
