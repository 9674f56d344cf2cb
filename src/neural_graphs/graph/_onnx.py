"""ONNX files, for reading only: the graph of operators as an `nn.Module` that can be traced like any other.

An export to ONNX is lossy: normalisation is folded into convolutions, weights are transposed and renamed. What is read here
is the network of the file, never the one it was exported from. An operator that is not known is refused, never skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from neural_graphs._inputs import batch_size
from neural_graphs.errors import UserError
from neural_graphs.graph import _onnx_shapes as _onnx_shapes  # registers its operators
from neural_graphs.graph._onnx_operators import OPERATORS, Call, Value, element_dtype

# Operators whose one-number inputs are biases or the like; elsewhere one number is a constant of the computation.
_TAKES_SINGLE = {"Gemm", "Conv", "ConvTranspose", "BatchNormalization", "LayerNormalization", "MatMul", "Add"}


def import_onnx(
    path: Path, inputs: Sequence[tuple[tuple[int, ...], int | None]] | None = None, seed: int = 0
) -> tuple[nn.Module, Any, list[str]]:
    """The network of an ONNX file as a module, an example input (a tensor or a tuple), and notes on what was left out.

    Floating-point initialisers become parameters under their own names (characters that no Python name has become ``_``),
    except single numbers that only scale. ``inputs`` gives the shape of every input without its batch axis, and a bound for
    ids, where the file leaves sizes open. Values that depend on shapes alone are computed once, so that the module fits
    inputs of these sizes only.

    Raises:
        UserError: the extra ``onnx`` is missing; the file is missing, broken or refers to data outside its folder; an
            operator is unknown (it is named) or is used in a way that is; sizes are open or do not fit.
    """
    model = _read(path)
    try:
        with torch.no_grad():
            return _Importer(model, seed).run(inputs)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read(path: Path) -> Any:
    try:
        import onnx
        from onnx import inliner
    except ImportError:
        raise UserError(f"{path} is an ONNX file: pip install 'neural-graphs[onnx]'") from None
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        # The checker refuses external data that is missing or lies outside the folder of the file.
        onnx.checker.check_model(str(path))
        model = onnx.load(path)
        return inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:  # protobuf, checker and file errors have no common base
        detail = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"cannot read {path}: {detail.strip()}; it may be truncated or no ONNX file") from None


class _Importer:
    """Runs the file's nodes in order on an example while writing the same computation down as an FX graph."""

    def __init__(self, model: Any, seed: int) -> None:
        self.source = model.graph
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        self.generator = torch.Generator().manual_seed(seed)
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, Value] = {}
        self.constants = 0
        self.names: set[str] = set()
        self.consumers: dict[str, list[tuple[Any, int]]] = {}
        for node in self.source.node:
            for place, name in enumerate(node.input):
                self.consumers.setdefault(name, []).append((node, place))

    def run(self, inputs: Sequence[tuple[tuple[int, ...], int | None]] | None) -> tuple[nn.Module, Any, list[str]]:
        # FX wants the placeholders first.
        examples = self._inputs(inputs)
        for initializer in self.source.initializer:
            self.values[initializer.name] = self._weight(initializer.name, initializer)
        if self.source.sparse_initializer:
            raise UserError("its weights are sparse tensors; only dense ones are read")
        for node in self.source.node:
            self._run_node(node)
        outputs = [self._node(self.values[output.name]) for output in self.source.output]
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        self.graph.eliminate_dead_code()
        unused = [name for name in self.names if not self._is_read(name)]
        module = fx.GraphModule(self.root, self.graph, "OnnxModule")  # takes over the tensors that are read
        if not list(module.parameters()):
            raise UserError("the file holds no network: none of its weights is used")
        notes = (
            [f"{len(unused)} tensors of the file are no weights (sizes, scales) or unused, and were left out"]
            if unused
            else []
        )
        return module.eval(), examples[0] if len(examples) == 1 else tuple(examples), notes

    # -- inputs and weights -------------------------------------------------------------------------------------------

    def _inputs(self, given: Sequence[tuple[tuple[int, ...], int | None]] | None) -> list[Tensor]:
        weights = {initializer.name for initializer in self.source.initializer}
        found = [entry for entry in self.source.input if entry.name not in weights]
        if not found:
            raise UserError("the network has no input")
        if given is not None and len(given) != len(found):
            raise UserError(
                f"the network has {len(found)} inputs ({', '.join(e.name for e in found)}), not {len(given)}"
            )
        examples = []
        types = [entry.type.tensor_type for entry in found]
        dtypes = [element_dtype(tensor.elem_type, entry.name) for tensor, entry in zip(types, found, strict=True)]
        stated = [[d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim] for tensor in types]
        shapes = [shape for shape, _ in given] if given is not None else [None] * len(found)
        batch = min(
            batch_size(math.prod(shape or [size or 1 for size in sizes[1:]]), not dtype.is_floating_point)
            for shape, sizes, dtype in zip(shapes, stated, dtypes, strict=True)
        )
        for place, entry in enumerate(found):
            shape, dtype = _sizes(entry.name, stated[place], shapes[place], batch), dtypes[place]
            if dtype.is_floating_point:
                value = torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype)
            else:
                bound = given[place][1] if given is not None else None
                value = torch.randint(bound or self._rows(entry.name), shape, generator=self.generator).to(dtype)
            examples.append(value)
            name = re.sub(r"\W", "_", entry.name)
            self.values[entry.name] = Value(value, self.graph.placeholder(name if name.isidentifier() else f"x_{name}"))
        return examples

    def _rows(self, name: str) -> int:
        """Rows of the smallest table that the ids of input ``name`` look up; 2 where there is none (a mask, say)."""
        tables = {initializer.name: initializer for initializer in self.source.initializer}
        rows = []
        for node, place in self.consumers.get(name, []):
            if node.op_type == "Cast":
                rows.append(self._rows(node.output[0]))
            elif node.op_type == "Gather" and place == 1 and node.input[0] in tables:
                rows.append(tables[node.input[0]].dims[0])
        return min(rows, default=2)

    def _weight(self, name: str, tensor: Any) -> Value:
        value = _tensor(tensor, name)
        uses = self.consumers.get(name, [])
        single = value.numel() == 1 and not any(node.op_type in _TAKES_SINGLE for node, _ in uses)
        if not value.is_floating_point() or value.dim() == 0 or single:
            return Value(value, None)
        # Running statistics are no parameters.
        statistic = bool(uses) and all(node.op_type == "BatchNormalization" and spot > 2 for node, spot in uses)
        place = self._register(name, value if statistic else nn.Parameter(value))
        self.names.add(place)
        return Value(value, self.graph.get_attr(place))

    def _register(self, name: str, value: Tensor) -> str:
        path = [re.sub(r"\W", "_", part) for part in name.split(".") if part] or ["weight"]
        if not self._free(path):
            path = ["_".join(path)]
        while not self._free(path):
            path[-1] += "_"
        parent = self.root
        for part in path[:-1]:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        if isinstance(value, nn.Parameter):
            parent.register_parameter(path[-1], value)
        else:
            parent.register_buffer(path[-1], value)
        return ".".join(path)

    def _free(self, path: Sequence[str]) -> bool:
        """Whether a parameter may be put there: nothing has that name, and no parameter is on the way."""
        parent: nn.Module = self.root
        for part in path[:-1]:
            if hasattr(parent, part) and part not in parent._modules:
                return False
            if part not in parent._modules:
                return True
            parent = parent.get_submodule(part)
        return not hasattr(parent, path[-1])

    def _is_read(self, place: str) -> bool:
        return any(node.op == "get_attr" and node.target == place for node in self.graph.nodes)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def _run_node(self, node: Any) -> None:
        kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        if kind == "Constant":
            self.values[node.output[0]] = self._constant(node)
            return
        if kind not in OPERATORS:
            raise UserError(f"the ONNX operator {kind} (node {node.name or node.output[0]}) is not supported")
        from onnx.helper import get_attribute_value

        attributes = {entry.name: get_attribute_value(entry) for entry in node.attribute}
        attributes = {key: value.decode() if isinstance(value, bytes) else value for key, value in attributes.items()}
        inputs = [self.values[name] if name else None for name in node.input]
        call = Call(kind, inputs, attributes, [name for name in node.output if name], self.opset, self._emit)
        try:
            results = OPERATORS[kind](call)
        except UserError as error:
            raise UserError(f"the ONNX operator {kind} (node {node.name or node.output[0]}): {error}") from None
        except (RuntimeError, IndexError, ValueError, TypeError, KeyError) as error:
            detail = " ".join(str(error).split())
            raise UserError(f"the ONNX operator {kind} (node {node.name or node.output[0]}) fails: {detail}") from None
        found = [results] if isinstance(results, Value) else results
        named = [(place, name) for place, name in enumerate(node.output) if name]
        if named[-1][0] >= len(found):
            raise UserError(f"output {named[-1][0] + 1} of the ONNX operator {kind} is not supported")
        for place, name in named:
            self.values[name] = found[place]

    def _constant(self, node: Any) -> Value:
        from onnx.helper import get_attribute_value

        (attribute,) = node.attribute
        value = get_attribute_value(attribute)
        if attribute.name == "value":
            return self._weight(node.output[0], value)
        if attribute.name not in ("value_float", "value_floats", "value_int", "value_ints"):
            raise UserError(f"the ONNX operator Constant (node {node.output[0]}) holds no numbers")
        dtype = torch.float32 if "float" in attribute.name else torch.int64
        return Value(torch.tensor(value if isinstance(value, (int, float)) else list(value), dtype=dtype), None)

    def _emit(self, function: Any, *args: Any, **kwargs: Any) -> Value:
        """Run ``function`` (or the tensor method of that name) on the values and, where any is not fixed, write it down."""
        values = [v for v in _walk((args, kwargs)) if isinstance(v, Value)]
        concrete_args, concrete_kwargs = _map((args, kwargs), lambda v: v.value)
        if isinstance(function, str):
            result = getattr(concrete_args[0], function)(*concrete_args[1:], **concrete_kwargs)
        else:
            result = function(*concrete_args, **concrete_kwargs)
        dynamic = [v for v in values if v.node is not None]
        if not dynamic:
            return Value(result, None)
        rank = max(v.value.dim() for v in dynamic if isinstance(v.value, Tensor)) if _tensors(dynamic) else 0
        node_args, node_kwargs = _map((args, kwargs), lambda v: self._argument(v, rank))
        create = self.graph.call_method if isinstance(function, str) else self.graph.call_function
        return Value(result, create(function, node_args, node_kwargs))

    def _argument(self, value: Value, rank: int) -> Any:
        if value.node is None and value.value.numel() == 1 and value.value.dim() <= rank:
            return value.value.item()  # broadcasts like the tensor
        return self._node(value)

    def _node(self, value: Value) -> fx.Node:
        if value.node is not None:
            return value.node
        if value.constant is None:
            name = f"constant_{self.constants}"
            self.constants += 1
            self.root.register_buffer(name, value.value, persistent=False)
            value.constant = self.graph.get_attr(name)
        return value.constant


def _sizes(name: str, stated: list[int | None], given: tuple[int, ...] | None, batch: int) -> list[int]:
    text = "x".join("?" if size is None else str(size) for size in stated)
    if given is not None:
        lead = () if len(given) == len(stated) else (stated[0] if stated and stated[0] else batch,)
        shape = [*lead, *given]
        if len(shape) != len(stated) or any(s not in (None, n) for s, n in zip(stated, shape, strict=True)):
            raise UserError(f"its input {name} is {text} (batch axis first), not {'x'.join(map(str, given))}")
        return shape
    shape = [size if size is not None else batch if place == 0 else 0 for place, size in enumerate(stated)]
    if 0 in shape:
        raise UserError(f"its input {name} is {text}, with open sizes: give them, as in --input 3x224x224")
    return shape


def _tensor(tensor: Any, name: str) -> Tensor:
    import numpy as np
    from onnx import numpy_helper

    dtype = element_dtype(tensor.data_type, name)
    array = numpy_helper.to_array(tensor)
    if dtype == torch.bfloat16:  # numpy has none
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array)).to(dtype)  # a copy: the array may be read-only


def _walk(tree: Any) -> list[Any]:
    if isinstance(tree, (tuple, list)):
        return [leaf for part in tree for leaf in _walk(part)]
    return _walk(list(tree.values())) if isinstance(tree, dict) else [tree]


def _map(tree: Any, function: Any) -> Any:
    """``tree`` with every ``Value`` in it replaced."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(_map(part, function) for part in tree)
    if isinstance(tree, dict):
        return {key: _map(part, function) for key, part in tree.items()}
    return function(tree) if isinstance(tree, Value) else tree


def _tensors(values: Sequence[Value]) -> bool:
    return any(isinstance(value.value, Tensor) for value in values)
