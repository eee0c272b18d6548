"""The adapter: a process that speaks the worker's contract to the node and drives an external model server behind it.

`python -m msm.adapter` is started by the node in the place of a worker, once for each server of a `ServingRuntime`. It
starts the server, puts models into it, and forwards inference requests with the names on both sides translated.
"""
