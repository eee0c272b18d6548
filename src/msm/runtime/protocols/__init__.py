"""Pure codecs between the bytes of a protocol and named tensors. They know no connection, queue or model."""
