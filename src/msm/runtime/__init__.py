"""The worker: a process of its own that holds models and answers inference requests for them.

One request path for all protocols: decode → named tensors → validate against the signature → batch → model →
encode. The worker decides nothing about placement or traffic: it is told by control calls which versions to hold,
and by a header which version a request is for. It imports `msm.kit` and nothing else of ours, and the ML libraries
only when a model of their format is loaded.
"""
