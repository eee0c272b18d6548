"""The ways in which a model can be written as an ONNX graph, best first. Libraries are imported when a way is taken.

Trees are written down exactly (`trees`, `boosters`, `tree_graph`). What is not all trees goes through skl2onnx, in FP64
where the original computes in FP64, then in FP32; boosters that hold something special go through onnxmltools. Whether
a graph is any good is not known here: that is for the comparison to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import numpy as np

from msm.kit.errors import Unsupported
from msm.runtime.acceleration import boosters, tree_graph, trees
from msm.runtime.acceleration.plan import Feed, Plan, Take
from msm.runtime.acceleration.trees import TreeModel
from msm.runtime.formats.base import LoadedModel
from msm.runtime.formats.boosting import BoostedModel
from msm.runtime.formats.sklearn import SklearnModel
from msm.runtime.signature import Datatype, Signature

Kind = Literal["sklearn", "lightgbm", "xgboost"]
_OPSETS: Final = {"": 18, "ai.onnx.ml": 3}
_FLOATS: Final[tuple[Datatype, ...]] = ("FP64", "FP32")
_INTEGERS: Final = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32"})


class Unfit(Exception):
    """The model cannot be converted; the text says why."""


@dataclass(frozen=True, slots=True)
class Original:
    """A loaded model seen by what is inside. `tree_model` is None for what is not all trees."""

    kind: Kind
    inner: Any
    model: LoadedModel
    methods: tuple[str, ...]
    tree_model: TreeModel | None

    @property
    def signature(self) -> Signature:
        return self.model.signature

    @property
    def labels(self) -> str | None:
        """The output that holds labels."""
        return "predict" if self.kind == "sklearn" and hasattr(self.inner, "classes_") else None


@dataclass(frozen=True, slots=True)
class Way:
    """One way to convert. `make` gives the ONNX model and the plan; it raises whatever the library raises."""

    name: str
    make: Callable[[], tuple[Any, Plan]]


def original_of(model: LoadedModel) -> Original:
    """The model by what is inside. Raises Unfit for formats and inputs that are not converted."""
    signature = model.signature
    found: Original
    if isinstance(model, SklearnModel):
        found = Original(
            "sklearn", model.source, model, tuple(model.methods), _tree_model(trees.of_sklearn, model.source)
        )
    elif isinstance(model, BoostedModel) and _library(model) == "lightgbm":
        found = Original("lightgbm", model.source, model, ("predict",), _tree_model(boosters.of_lightgbm, model.source))
    elif isinstance(model, BoostedModel) and _library(model) == "xgboost":
        found = Original("xgboost", model.source, model, ("predict",), _tree_model(boosters.of_xgboost, model.source))
    else:
        raise Unfit("only scikit-learn, XGBoost and LightGBM models are converted")
    for tensor in signature.inputs:
        if tensor.datatype not in _FLOATS and tensor.datatype not in _INTEGERS:
            raise Unfit(f"input {tensor.name!r} is {tensor.datatype}, and only numbers are converted")
    return found


def _library(model: BoostedModel) -> str:
    return type(model.source).__module__.partition(".")[0]


def _tree_model(read: Callable[[Any], TreeModel | None], inner: Any) -> TreeModel | None:
    """What `read` finds. Libraries change their insides: what cannot be read is not all trees."""
    try:
        return read(inner)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None


def ways(original: Original) -> Iterator[Way]:
    """The ways to try, best first. Raises Unfit when there is none."""
    count = 0
    single = len(original.signature.inputs) == 1
    if original.tree_model is not None and single and set(original.methods) <= {"predict", "predict_proba"}:
        count += 1
        dtype = "FP64" if original.tree_model.forest.threshold.dtype == np.float64 else "FP32"
        yield Way(f"trees in {dtype}", partial(_from_trees, original, original.tree_model))
    if original.kind == "sklearn":
        if not set(original.methods) <= {"predict", "predict_proba", "transform"}:
            odd = next(name for name in original.methods if name not in ("predict", "predict_proba", "transform"))
            raise Unfit(f"output {odd!r} is not converted")
        for datatype in _FLOATS:
            yield Way(f"skl2onnx in {datatype}", partial(_from_sklearn, original, datatype))
    else:
        yield Way("onnxmltools in FP32", partial(_from_booster, original))


def _from_trees(original: Original, model: TreeModel) -> tuple[Any, Plan]:
    tensor = original.signature.inputs[0]
    made = tree_graph.graph(model, tensor.shape[1])
    if made is None:
        raise Unfit("its leaves hold too many classes")
    own: Datatype = "FP64" if model.forest.threshold.dtype == np.float64 else "FP32"
    through: tuple[Datatype, ...] = ("FP32", own) if model.through_fp32 else (own,)
    takes = []
    for output, method in zip(original.signature.outputs, _methods_of(original), strict=True):
        is_label = model.classes is not None and method == "predict"
        takes.append(Take(output.name, "label" if is_label else "score"))
    return made, _plan(f"trees in {own}", original, (Feed(tensor.name, "X", through),), takes)


def _methods_of(original: Original) -> tuple[str, ...]:
    """The method behind each output; scikit-learn's outputs are named by them, in an order that may be declared."""
    if original.kind == "sklearn":
        return tuple(output.name for output in original.signature.outputs)
    return original.methods


def _plan(way: str, original: Original, feeds: tuple[Feed, ...], takes: list[Take]) -> Plan:
    return Plan(way, original.signature, feeds, tuple(takes))


def _from_sklearn(original: Original, datatype: Datatype) -> tuple[Any, Plan]:
    try:
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType
    except ImportError as error:
        raise _missing(error) from error
    floating = DoubleTensorType if datatype == "FP64" else FloatTensorType
    columns = len(original.signature.inputs) > 1
    types, feeds = [], []
    for tensor in original.signature.inputs:
        whole = columns and tensor.datatype in _INTEGERS
        kind = Int64TensorType if whole else floating
        types.append((tensor.name if columns else "X", kind([None, 1 if columns else tensor.shape[1]])))
        through: Datatype = "INT64" if whole else datatype
        feeds.append(Feed(tensor.name, tensor.name if columns else "X", (through,), columns))
    classifies = hasattr(original.inner, "classes_") and hasattr(original.inner, "predict_proba")
    options = {"zipmap": False} if classifies else None
    made = to_onnx(original.inner, initial_types=types, options=options, target_opset=_OPSETS)
    graph_outputs = [output.name for output in made.graph.output]
    takes = []
    for output, method in zip(original.signature.outputs, _methods_of(original), strict=True):
        place = 1 if method == "predict_proba" else 0
        takes.append(Take(output.name, graph_outputs[place]))
    return made, _plan(f"skl2onnx in {datatype}", original, tuple(feeds), takes)


def _from_booster(original: Original) -> tuple[Any, Plan]:
    """LightGBM and XGBoost by onnxmltools, which knows FP32 only."""
    try:
        import onnxmltools
        from onnxmltools.convert.common.data_types import FloatTensorType
    except ImportError as error:
        raise _missing(error) from error
    tensor, output = original.signature.inputs[0], original.signature.outputs[0]
    types = [("X", FloatTensorType([None, tensor.shape[1]]))]
    if original.kind == "lightgbm":
        made = onnxmltools.convert_lightgbm(original.inner, initial_types=types, target_opset=15, zipmap=False)
    else:
        made = onnxmltools.convert_xgboost(original.inner, initial_types=types, target_opset=15)
    graph_outputs = [found.name for found in made.graph.output]
    # A classifier has labels, then probabilities of all classes, where a booster gives that of the second of two.
    column = 1 if len(graph_outputs) > 1 and len(output.shape) == 1 else None
    take = Take(output.name, graph_outputs[-1], column)
    return made, _plan("onnxmltools in FP32", original, (Feed(tensor.name, "X", ("FP32",)),), [take])


def _missing(error: ImportError) -> Unsupported:
    return Unsupported(
        f"acceleration needs {error.name or 'a library'}: install model-service-mesh[accelerate]",
        reason="format_not_installed",
    )
