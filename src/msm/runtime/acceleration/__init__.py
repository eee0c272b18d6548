"""Verified acceleration: a version converted to ONNX, used only where it was found to answer alike and faster.

`work` does it all in a child of the probation process; `model` is what a worker serves afterwards. The rest is pure or
nearly so: `inputs` draws what both are asked with, `convert` makes the graphs, `verify` compares, `decide` judges.
"""
