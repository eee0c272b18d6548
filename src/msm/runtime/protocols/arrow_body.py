"""Apache Arrow IPC streams (`application/vnd.apache.arrow.stream`): columns are tensors, rows their first dimension.

Columns belong to inputs by name. A column of numbers, booleans, text or bytes is a tensor of shape [n]; one of fixed
size lists (of fixed size lists ...), or of the type `arrow.fixed_shape_tensor`, has their sizes behind it. When no name
is an input's and the model has one input of shape [-1, n], the columns are its n columns. One record batch is read
without a copy.

What a stream may hold is bounded by its own size: types whose values take less room than their rows (null, dictionary,
run-end), compressed buffers and more than 1024 batches are refused before anything is read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import numpy as np

from msm.kit.errors import InvalidInput, Unsupported
from msm.runtime.protocols import call, tensors
from msm.runtime.protocols.call import Sent
from msm.runtime.protocols.tensors import DATATYPES, Array
from msm.runtime.signature import MAX_RANK, Signature, Tensor

MAX_BATCHES: Final = 1024
_COMPRESSION: Final = 3  # fields of the flatbuffers tables Message and RecordBatch, in Arrow's Message.fbs
_HEADER: Final = 2


def library() -> Any:
    """pyarrow. Raises Unsupported naming the extra when it is not installed."""
    try:
        import_module("pyarrow.ipc")
        return import_module("pyarrow")
    except ImportError as error:
        raise Unsupported(
            "Arrow bodies need pyarrow: install model-service-mesh[arrow]", reason="form_not_installed"
        ) from error


def decode(body: bytes, signature: Signature) -> dict[str, Sent]:
    """The inputs in a stream. Raises InvalidInput; Unsupported without pyarrow or a signature."""
    pa = library()
    if not signature.inputs:
        raise Unsupported("the model declares no inputs, which Arrow bodies need", reason="form_not_offered")
    try:
        _refuse_compressed(pa, body)
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            _check_schema(pa, reader.schema)
            batches = list(reader)
        for batch in batches:
            batch.validate(full=True)
    except (pa.ArrowException, OSError, struct.error, ValueError) as error:
        problem = str(error).partition("\n")[0]
        raise InvalidInput(
            f"the body is not an Arrow IPC stream: {call.told(problem[:150])}", reason="invalid_arrow"
        ) from error
    columns = {
        name: _column(pa, name, [batch.column(place) for batch in batches], reader.schema.field(place).type)
        for place, name in enumerate(reader.schema.names)
    }
    return _inputs(signature, columns)


def _refuse_compressed(pa: Any, body: bytes) -> None:
    count = 0
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
        if message.type == "dictionary":
            raise InvalidInput("Arrow dictionaries are not offered: send plain columns", reason="wrong_column_type")
        if message.type != "record batch":
            continue
        count += 1
        if count > MAX_BATCHES:
            raise InvalidInput(f"the stream has more than {MAX_BATCHES} record batches", reason="too_many_batches")
        if _is_compressed(message.metadata.to_pybytes()):
            raise InvalidInput(
                "compressed Arrow buffers are not offered: write the stream without", reason="compressed"
            )


def _is_compressed(metadata: bytes) -> bool:
    """Whether the RecordBatch in a Message (both flatbuffers tables) says how its buffers are compressed."""
    message = struct.unpack_from("<I", metadata, 0)[0]
    place = _table_field(metadata, message, _HEADER)
    batch = place + struct.unpack_from("<I", metadata, place)[0]
    return _table_field(metadata, batch, _COMPRESSION) != 0


def _table_field(data: bytes, table: int, field: int) -> int:
    """Where a field of a flatbuffers table is, 0 when it is absent."""
    entries = table - struct.unpack_from("<i", data, table)[0]
    offset = 4 + 2 * field
    if offset >= struct.unpack_from("<H", data, entries)[0]:
        return 0
    distance: int = struct.unpack_from("<H", data, entries + offset)[0]
    return table + distance if distance else 0


def _check_schema(pa: Any, schema: Any) -> None:
    call.check_count("columns", len(schema.names))
    if len(set(schema.names)) < len(schema.names):
        raise call.duplicate("column", next(n for n in schema.names if schema.names.count(n) > 1))
    types = pa.types
    for field in schema:
        kind = field.type
        for _ in range(MAX_RANK):
            if isinstance(kind, pa.BaseExtensionType):
                kind = kind.storage_type
            if not types.is_fixed_size_list(kind):
                break
            kind = kind.value_type
        plain = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
        text = kind == field.type and (
            types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
        )
        if not plain and not text:
            raise InvalidInput(
                f"column {call.told(field.name[:100])!r} has type {call.told(str(field.type)[:100])}, which no tensor "
                "can have",
                reason="wrong_column_type",
            )


def _column(pa: Any, name: str, chunks: list[Any], kind: Any) -> Array:
    """The values of a column, a view when it came in one batch."""
    parts = [_values(pa, name, chunk) for chunk in chunks]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else _values(pa, name, pa.array([], kind))


def _values(pa: Any, name: str, array: Any) -> Array:
    shape = [len(array)]
    while True:
        if array.null_count:
            raise InvalidInput(f"column {name[:100]!r} holds nulls, which no tensor can", reason="null_value")
        if isinstance(array.type, pa.BaseExtensionType):
            extension = array.type
            array = array.storage
            order = list(getattr(extension, "permutation", None) or ())
            if order != sorted(order):
                raise InvalidInput(f"column {name[:100]!r} is permuted", reason="wrong_column_type")
            if hasattr(extension, "shape"):
                tensors.element_count([len(array), *extension.shape], name)
                return _values(pa, name, array).reshape(len(array), *extension.shape)
        if not pa.types.is_fixed_size_list(array.type):
            break
        shape.append(array.type.list_size)
        tensors.element_count(shape, name)
        array = array.flatten()
    if pa.types.is_boolean(array.type):
        return array.to_numpy(zero_copy_only=False).reshape(shape)  # type: ignore[no-any-return]
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        return array.to_numpy().reshape(shape)  # type: ignore[no-any-return]
    kind = pa.large_binary() if pa.types.is_large_unicode(array.type) else pa.binary()
    if pa.types.is_unicode(array.type) or pa.types.is_large_unicode(array.type):
        array = array.view(kind)
    return tensors.objects(array.to_pylist())


def _inputs(signature: Signature, columns: Mapping[str, Array]) -> dict[str, Sent]:
    known = {tensor.name: tensor for tensor in signature.inputs}
    if len(known) == 1 and not known.keys() & columns.keys() and columns:
        (tensor,) = signature.inputs
        return {tensor.name: _joined(tensor, columns)}
    found: dict[str, Sent] = {}
    for name, array in columns.items():
        datatype = _datatype(array)
        declared = known.get(name)
        if declared is not None:
            if declared.datatype == "BF16" and datatype == "UINT16":
                datatype = "BF16"  # as its bits
            if len(declared.shape) == 2 and array.ndim == 1:
                array = array.reshape(-1, 1)
        found[name] = Sent(datatype, array)
    return found


def _datatype(array: Array) -> str:
    return "BYTES" if array.dtype == object else DATATYPES[array.dtype]


def _joined(tensor: Tensor, columns: Mapping[str, Array]) -> Sent:
    """All columns as the columns of the only input."""
    datatypes = {_datatype(array) for array in columns.values()}
    if len(datatypes) > 1 or any(array.ndim > 1 for array in columns.values()):
        raise InvalidInput(
            f"the columns of input {tensor.name!r} must be of one type, one value a row", reason="datatype_mismatch"
        )
    return Sent(datatypes.pop(), np.stack(list(columns.values()), axis=1))


def encode(outputs: Mapping[str, tuple[str, Array]]) -> bytes:
    """The outputs as a stream of one record batch; further dimensions as fixed size lists, BYTES as binary.

    The metadata of each column names its datatype. Raises InvalidInput for outputs of different numbers of rows.
    """
    pa = library()
    rows = {array.shape[:1] for _, array in outputs.values()}
    if len(rows) > 1 or () in rows:
        raise InvalidInput(
            "the outputs differ in their numbers of rows, which Arrow cannot hold: accept application/json",
            reason="output_not_tabular",
        )
    fields, arrays = [], []
    for name, (datatype, array) in outputs.items():
        arrays.append(_arrow(pa, array))
        fields.append(pa.field(name, arrays[-1].type, nullable=False, metadata={"datatype": datatype}))
    schema = pa.schema(fields)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _arrow(pa: Any, array: Array) -> Any:
    flat = array.reshape(-1)
    if flat.dtype == object:
        made = pa.array([tensors.as_bytes(element) for element in flat.tolist()], pa.binary())
    else:
        made = pa.array(np.ascontiguousarray(flat))
    for place in range(array.ndim - 1, 0, -1):
        count = int(np.prod(array.shape[:place], dtype=np.int64))
        kind = pa.list_(pa.field("item", made.type, nullable=False), array.shape[place])
        made = pa.Array.from_buffers(kind, count, [None], children=[made])
    return made
