"""From a module and an example input to one flat graph of ATen operators.

The route is ``torch.export`` (non-strict, not decomposed: ``linear``, ``conv2d``, ``layer_norm``, ``gru`` stay whole). Where
it refuses, because the module decides on values of its data, ``make_fx`` runs the module once and records the path taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode

from neural_graphs.errors import UserError
from neural_graphs.graph._flatten import NotFlat, flatten, writes_to_memory
from neural_graphs.graph._state import read_state

Kind = Literal["parameter", "buffer", "constant", "input"]
_PREFIX = "module."  # what wrapping a module in _FlatOutput puts before its parameter names


@dataclass(frozen=True, eq=False)
class Captured:
    """What a module computes, as a graph of ATen operators, beside its parameters by reference.

    ``graph`` has no submodules: parameters, buffers, constants and inputs are placeholders, described by ``sources``
    (placeholder name -> kind and full name); ``node.meta["val"]`` holds shape and dtype. Tied parameters share the
    placeholder of their first name. ``state`` is the state dict in order (detached, never copied), duplicates included,
    ``tied`` maps each duplicate to its first name. ``constants`` holds the values of the placeholders of kind
    "constant", non-persistent buffers among them. ``route`` is "export", or "make_fx" when the module decides on values of
    its data: then the graph is the path that the example input took, and ``aten.item`` nodes say what was decided on.
    """

    graph: Graph
    sources: dict[str, tuple[Kind, str]]
    state: dict[str, Tensor]
    tied: dict[str, str]
    constants: dict[str, Tensor]
    route: Literal["export", "make_fx"]


def capture(module: nn.Module, example: Any) -> Captured:
    """Record what ``module`` computes on ``example``: a tensor, a tuple of arguments, or a dict of keyword arguments.

    The module is put into eval mode meanwhile and back afterwards; nothing is trained or copied. Modules on the ``meta``
    device are captured without weights. Raises ``UserError`` in one line when the module has no parameters or ones that
    are no floating-point tensors, when the example does not fit, or when no route can record the module.
    """
    state, tied = read_state(module)
    args, kwargs = _arguments(module, example)
    modes = {child: child.training for child in module.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        module.eval()
        # the fused path of nn.TransformerEncoderLayer would hide the whole layer behind one operator
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), _quiet():
            wrapped = _FlatOutput(module)
            try:
                graph, sources, constants = _by_export(wrapped, args, kwargs)
                route: Literal["export", "make_fx"] = "export"
                if _mixes_types(graph):
                    _run_once(wrapped, args, kwargs, None)
            except (_NoTensorError, UserError):
                _run_once(wrapped, args, kwargs, None)
                raise
            except Exception as refused:
                graph, sources, constants = _by_running(wrapped, args, kwargs, tied, refused)
                route = "make_fx"
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for child, training in modes.items():
            child.training = training
    _merge_tied(graph, sources, tied)
    if not any(node.users for node in graph.nodes if sources.get(node.name, ("", ""))[0] == "parameter"):
        raise UserError(f"what {type(module).__name__} returns does not depend on its parameters")
    return Captured(graph, sources, state, tied, constants, route)


class _NoTensorError(Exception):
    pass


class _FlatOutput(nn.Module):
    """``module`` with its output flattened to tensors: output classes need no registration, caches are left out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        outputs = tuple(_tensors(self.module(*args, **kwargs)))
        if not outputs:
            raise _NoTensorError
        return outputs


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name, None))


# -- parameters -------------------------------------------------------------------------------------------------------


def _merge_tied(graph: Graph, sources: dict[str, tuple[Kind, str]], tied: dict[str, str]) -> None:
    """One placeholder per tensor, under its first name."""
    nodes: dict[str, Node] = {}
    for node in list(graph.nodes):
        kind, name = sources.get(node.name, ("input", "")) if node.op == "placeholder" else ("input", "")
        if kind not in ("parameter", "buffer"):
            continue
        name = tied.get(name, name)
        if name in nodes:
            node.replace_all_uses_with(nodes[name])
            graph.erase_node(node)
            del sources[node.name]
        else:
            nodes[name] = node
            sources[node.name] = (kind, name)


# -- inputs -----------------------------------------------------------------------------------------------------------


def _arguments(module: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, tensors on the device of the module's parameters."""
    first = next(module.parameters())

    def place(value: Any) -> Any:
        if isinstance(value, Tensor):
            moved = value.detach().to(first.device)
            if isinstance(first, FakeTensor) and not isinstance(value, FakeTensor):
                return first.fake_mode.from_tensor(moved)
            return moved
        return _rebuilt(value, place)

    if isinstance(example, Mapping):
        return (), {str(name): place(value) for name, value in example.items()}
    values = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    return tuple(map(place, values)), {}


def _rebuilt(value: Any, change: Any) -> Any:
    """A nested container with ``change`` applied to its items; anything else as it is."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(change, value))
    if isinstance(value, list):
        return list(map(change, value))
    if isinstance(value, dict):
        return {key: change(item) for key, item in value.items()}
    return value


def _described(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    def one(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
        return type(value).__name__

    return ", ".join([*map(one, args), *(f"{name}={one(value)}" for name, value in kwargs.items())]) or "no arguments"


# -- routes -----------------------------------------------------------------------------------------------------------

_Recorded = tuple[Graph, dict[str, tuple[Kind, str]], dict[str, Tensor]]


def _by_export(wrapped: _FlatOutput, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Recorded:
    from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

    program = torch.export.export(wrapped, args, kwargs, strict=False)
    if writes_to_memory(program.graph_module):
        # an empty table: nothing is decomposed, but writes become values. Where this fails (it does on tied parameters
        # beside inner graphs), flatten does it for plain writes.
        with contextlib.suppress(Exception):
            program = program.run_decompositions({})
    kinds: dict[InputKind, Kind] = {
        InputKind.PARAMETER: "parameter",
        InputKind.BUFFER: "buffer",
        InputKind.CONSTANT_TENSOR: "constant",
        InputKind.USER_INPUT: "input",
    }
    sources: dict[str, tuple[Kind, str]] = {}
    constants: dict[str, Tensor] = {}
    persistent = wrapped.module.state_dict(keep_vars=True)
    for spec in program.graph_signature.input_specs:
        if spec.kind not in kinds or not isinstance(spec.arg, TensorArgument):
            continue  # a number or None among the inputs: export has put its value where it is used
        kind, target = kinds[spec.kind], (spec.target or spec.arg.name).removeprefix(_PREFIX)
        if kind == "buffer" and target not in persistent:
            kind = "constant"
        if kind == "constant":
            value = program.constants.get(spec.target or "", program.state_dict.get(spec.target or ""))
            if not isinstance(value, Tensor):
                raise NotFlat(f"{target} is no tensor")
            constants[spec.arg.name] = value.detach()
        sources[spec.arg.name] = (kind, target)
    # what else a program returns are new values of buffers and inputs that it writes to
    specs = program.graph_signature.output_specs
    outputs = [spec.arg.name for spec in specs if spec.kind == OutputKind.USER_OUTPUT and hasattr(spec.arg, "name")]
    graph = flatten(program.graph_module, sources, constants, outputs)
    return graph, sources, constants


def _by_running(
    wrapped: _FlatOutput, args: tuple[Any, ...], kwargs: dict[str, Any], tied: dict[str, str], refused: Exception
) -> _Recorded:
    """Run the module once and record the operators of the path taken."""
    from torch.fx.experimental.proxy_tensor import make_fx

    _run_once(wrapped, args, kwargs, refused)
    name = type(wrapped.module).__name__
    named = {**dict(wrapped.named_parameters()), **dict(wrapped.named_buffers())}
    inputs: list[Tensor] = []
    _rebuilt([args, kwargs], lambda value: _collect(value, inputs))

    def run(values: list[Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        new_args, new_kwargs = _rebuilt([args, kwargs], lambda value: _filled(value, rest))
        with _NoValuesInPython():
            result: tuple[Tensor, ...] = torch.func.functional_call(
                wrapped, dict(zip(named, values, strict=True)), new_args, new_kwargs
            )
        return result

    try:
        # without the flag, reading a value (``if mask.any()``) is an error even while running on real tensors
        recorded = make_fx(run, pre_dispatch=True, _error_on_data_dependent_ops=False)(list(named.values()), inputs)
        persistent = wrapped.module.state_dict(keep_vars=True)
        sources: dict[str, tuple[Kind, str]] = {}
        constants: dict[str, Tensor] = {}
        parameters = dict(wrapped.named_parameters())
        placeholders = [node for node in recorded.graph.nodes if node.op == "placeholder"]
        for node, (full, value) in zip(placeholders, named.items(), strict=False):
            short = full.removeprefix(_PREFIX)
            kind: Kind = "parameter" if full in parameters else "buffer" if short in persistent else "constant"
            if kind == "constant":
                constants[node.name] = value.detach()
            sources[node.name] = (kind, short)
        for index, node in enumerate(placeholders[len(named) :]):
            sources[node.name] = ("input", f"input_{index}")
        return flatten(recorded, sources, constants, None), sources, constants
    except Exception as error:
        _refuse(name, error if isinstance(error, NotFlat) else refused, "")


def _run_once(wrapped: _FlatOutput, args: tuple[Any, ...], kwargs: dict[str, Any], refused: Exception | None) -> None:
    """Let the module itself say what is wrong with the example input."""
    name = type(wrapped.module).__name__
    try:
        wrapped(*args, **kwargs)
    except _NoTensorError:
        raise UserError(f"{name} returns no tensor for this example input") from None
    except Exception as error:
        if refused is not None and _needs_values(error):
            _refuse(name, refused, " (its path depends on values, which the meta device has not: give real weights)")
        raise UserError(
            f"the example input ({_described(args, kwargs)}) does not fit {name}: {first_line(error)}"
        ) from error


def _mixes_types(graph: Graph) -> bool:
    """Whether a product mixes dtypes, or indices are no integers: recording may allow it (and autocast explain it), most
    devices do not."""
    for node in graph.nodes:
        name = getattr(getattr(node.target, "_schema", None), "name", "").partition("::")[2]
        if name == "embedding" and node.args[1].meta["val"].dtype.is_floating_point:
            return True
        if name in ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "einsum") or name.startswith("conv"):
            values = [source.meta.get("val") for source in node.all_input_nodes]
            if len({value.dtype for value in values if isinstance(value, Tensor)}) > 1:
                return True
    return False


class _NoValuesInPython(TorchFunctionMode):
    """Refuses to hand out a tensor's values: what comes back from Python would be recorded as a constant. Comparisons that
    answer in Python are spelled out, so that the record shows what was decided on."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise NotFlat(f"it takes a tensor's values to Python ({function.__name__})")
        if function in (torch.equal, Tensor.equal):
            return _equal(*args, **(kwargs or {}))
        if function in (torch.allclose, Tensor.allclose):
            return bool(torch.isclose(*args, **(kwargs or {})).all())
        return function(*args, **(kwargs or {}))


def _equal(input: Tensor, other: Tensor) -> bool:
    return input.shape == other.shape and bool((input == other).all())


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    else:
        _rebuilt(value, lambda item: _collect(item, found))


def _filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(tensors)
    return _rebuilt(value, lambda item: _filled(item, tensors))


def _needs_values(error: Exception) -> bool:
    text = str(error)
    unknown = "meta tensor" in text.lower() or "DataDependent" in type(error).__name__
    return unknown or isinstance(error, NotImplementedError) or "higher order operator" in text


def _refuse(name: str, error: Exception, hint: str) -> NoReturn:
    raise UserError(f"{name} cannot be recorded by torch.export: {first_line(error)}{hint}") from error


def first_line(error: BaseException) -> str:
    """What an exception says, in one line of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export explains its refusals at length on stderr and warns about its own workings."""
    names = ("torch.fx.experimental.symbolic_shapes", "torch.export", "torch._export", "torch._subclasses", "torch.fx")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
