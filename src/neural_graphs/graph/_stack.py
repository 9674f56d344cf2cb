"""Plain stacks of linear and convolutional layers: a network architecture as a value, run for many networks at once."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._convolution import convolve, mean_over_positions
from neural_graphs.graph._sizes import check_residuals, input_shape

if TYPE_CHECKING:
    from neural_graphs.graph._graph import NeuralGraph


@dataclass(frozen=True)
class Layer:
    """One parametric layer and the activation behind it.

    ``name`` is the state-dict prefix (``"seq.0"`` owns ``"seq.0.weight"``). ``kernel`` is ``()`` for a linear layer and
    ``(kh, kw)`` for a convolution. ``positions`` counts the spatial positions that a linear layer reads per input channel
    when a flattened feature map feeds it: its weight then has shape ``(outputs, inputs * positions)``, channel-major.
    ``pool`` is what happens between the activation and the next layer: ``""``, ``"global"`` (average over all positions)
    or ``"max:2"`` (max pooling, window and stride 2). ``residual`` is the number (from 0) of an earlier layer whose values,
    after its activation and before its pooling, are added before this layer's activation, on the first channels that both
    have (the rule of the CNN Wild Park, Kofinas et al. 2024, appendix); -1 for none.
    """

    name: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    positions: int = 1
    bias: bool = True
    activation: Activation = field(default_factory=Activation)
    stride: int = 1
    padding: int = 0
    pool: str = ""
    residual: int = -1

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.inputs * self.positions, *self.kernel)

    @property
    def fan_in(self) -> int:
        return self.inputs * self.positions * math.prod(self.kernel)

    @property
    def weight(self) -> str:
        """State-dict name of the weight."""
        return f"{self.name}.weight".lstrip(".")

    @property
    def bias_name(self) -> str | None:
        """State-dict name of the bias, or None."""
        return f"{self.name}.bias".lstrip(".") if self.bias else None


@dataclass(frozen=True)
class Stack:
    """A plain feed-forward architecture: layers in order, plus a constant ``shift`` added to the output.

    Immutable, hashable and JSON-able, so that it can name a bucket of networks in a zoo. It holds no parameters: ``forward``
    takes them stacked over B networks.
    """

    layers: tuple[Layer, ...]
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not self.layers:
            raise UserError("a network needs at least one layer")
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            if before.outputs != after.inputs:
                raise UserError(
                    f"layer {after.name} reads {after.inputs} features but {before.name} writes {before.outputs}"
                )
        if any(layer.residual != -1 for layer in self.layers):
            check_residuals(self.layers)

    @classmethod
    def mlp(
        cls,
        widths: Sequence[int] = (2, 32, 32, 1),
        activation: str | Activation | Sequence[str | Activation] = "sine:30",
        shift: float = 0.0,
        prefix: str = "seq.{}",
        output_activation: str | Activation = "none",
        bias: bool = True,
    ) -> Stack:
        """A multilayer perceptron; ``activation`` may be a list with one entry per hidden layer.

        ``Stack.mlp((2, 32, 32, 1), "sine:30", shift=0.5)`` is the SIREN of Navon et al.'s INR corpus.
        """
        if len(widths) < 2 or any(int(w) < 1 for w in widths):
            raise UserError(f"widths {tuple(widths)}: give at least an input and an output size, all positive")
        hidden = len(widths) - 2
        if isinstance(activation, (str, Activation)):
            activation = [activation] * hidden
        if len(activation) != hidden:
            raise UserError(f"{hidden} hidden layers need {hidden} activations, got {len(activation)}")
        kinds = [Activation.parse(a) for a in (*activation, output_activation)]
        layers = tuple(
            Layer(prefix.format(i), int(widths[i]), int(widths[i + 1]), bias=bias, activation=kind)
            for i, kind in enumerate(kinds)
        )
        return cls(layers, float(shift))

    # -- descriptions ---------------------------------------------------------------------------------------------

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.layers[0].inputs, *(layer.outputs for layer in self.layers))

    @property
    def num_outputs(self) -> int:
        return self.layers[-1].outputs

    @cached_property
    def input_shape(self) -> tuple[int | None, ...]:
        """One input's shape: ``(d,)``, ``(c, h, w)``, or ``(c, None, None)`` where any height and width will do.

        A flattened map fixes the size of the inputs; it is taken to be as square, and their sides as round, as they can be.
        """
        return input_shape(self.layers)

    @property
    def activations_used(self) -> tuple[str, ...]:
        """The distinct activations of the hidden layers, such as ``("relu", "sine:30")``, in order of appearance."""
        return tuple(dict.fromkeys(str(layer.activation) for layer in self.layers[:-1]))

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes in state-dict order."""
        return dict(self._shapes())

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for layer in self.layers:
            yield layer.weight, layer.weight_shape
            if layer.bias_name:
                yield layer.bias_name, (layer.outputs,)

    def __str__(self) -> str:
        parts = [str(self.layers[0].inputs)]
        for layer in self.layers:
            kernel = f"k{'x'.join(map(str, layer.kernel))}" if layer.kernel else ""
            added = f"+{layer.residual}" if layer.residual >= 0 else ""
            parts.append(f"{layer.outputs}{kernel}{added}")
        kinds = [str(layer.activation) for layer in self.layers[:-1]]
        if self.layers[-1].activation.kind != "none":
            kinds.append(str(self.layers[-1].activation))
        distinct = list(dict.fromkeys(kinds))
        shown = distinct if len(distinct) == 1 else kinds
        return "-".join(parts) + (" " + ",".join(shown) if shown else "")

    def to_json(self) -> dict[str, Any]:
        layers = []
        for layer in self.layers:
            entry = asdict(layer)
            entry["kernel"] = list(layer.kernel)
            entry["activation"] = str(layer.activation)
            layers.append(entry)
        return {"kind": "stack", "shift": self.shift, "layers": layers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stack:
        """Inverse of ``to_json``; raises ``UserError`` when ``data`` does not describe a stack."""
        if not isinstance(data, Mapping) or data.get("kind") != "stack":
            raise UserError("this architecture is not a plain stack that this version can read")
        try:
            layers = tuple(
                Layer(
                    **{
                        **entry,
                        "kernel": tuple(entry["kernel"]),
                        "activation": Activation.parse(entry["activation"]),
                    }
                )
                for entry in data["layers"]
            )
            return cls(layers, float(data.get("shift", 0.0)))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the description of an architecture is broken: {error}") from None

    # -- running --------------------------------------------------------------------------------------------------

    def activations(self, params: Mapping[str, Tensor], x: Tensor) -> list[Tensor]:
        """The values of every layer, for B networks on shared or separate inputs.

        ``params`` maps names to tensors ``[B, *shape]``; ``x`` is ``[K, d]`` (shared) or ``[B, K, d]``, for
        convolutional stacks ``[K, c, h, w]`` or ``[B, K, c, h, w]``. Returns, for the inputs, each hidden layer (after
        its activation) and the output (with the shift), a tensor ``[B, K, n]``, or ``[B, K, n, h, w]`` for feature maps.
        """
        batch = params[self.layers[0].weight].shape[0]
        per_network = x.dim() in (3, 5)
        if not batch and self.layers[0].kernel:  # no convolution has zero groups: shapes are those of one network
            one = {name: value.new_zeros(1, *value.shape[1:]) for name, value in params.items()}
            return [v[:0] for v in self.activations(one, x.new_zeros(1, *x.shape[1:]) if per_network else x)]
        h = x if per_network else x.expand(batch, *x.shape)
        values = [h]
        if not per_network:
            # batched products, and their gradients, are far slower on an axis of stride 0; convolutions share images
            h = x if self.layers[0].kernel else h.contiguous()
        for layer in self.layers:
            h = self._apply(layer, params, h, values[layer.residual + 1] if layer.residual >= 0 else None)
            values.append(h)
            if layer is not self.layers[-1]:
                h = _pool(layer, h)
        if self.shift:
            values[-1] = values[-1] + self.shift
        return values

    @staticmethod
    def _apply(layer: Layer, params: Mapping[str, Tensor], h: Tensor, residual: Tensor | None = None) -> Tensor:
        weight = params[layer.weight]
        bias = params[layer.bias_name] if layer.bias_name else None
        if not layer.kernel:
            if h.dim() == 5:
                h = h.flatten(2)
            activation = layer.activation
            if activation.kind == "sine" and activation.omega != 1 and len(h) > 1 and residual is None:
                # ω0 on the parameters: they are few, the values K times as many. Not for one network, which may be the one
                # that is being traced: its sine should be recorded with its frequency.
                weight, bias = weight * activation.omega, bias * activation.omega if bias is not None else None
                activation = Activation("sine", 1.0)
            transposed = weight.transpose(1, 2)
            out = torch.baddbmm(bias.unsqueeze(1), h, transposed) if bias is not None else torch.bmm(h, transposed)
            return activation(out if residual is None else _add(out, residual, layer))
        out = convolve(h, weight, bias, layer.stride, layer.padding)
        return layer.activation(out if residual is None else _add(out, residual, layer))

    def forward(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs ``[B, K, out]`` of B networks; arguments as in ``activations``."""
        return self.activations(params, x)[-1]

    def graph(self, params: Mapping[str, Tensor]) -> NeuralGraph:
        """The networks with these parameters ``{name: [B, *shape]}`` as one ``NeuralGraph``, which can run them.

        Raises ``UserError`` naming the first tensor that is missing or of another shape.
        """
        from neural_graphs.graph._graph import NeuralGraph
        from neural_graphs.graph._stack_spec import spec_of_stack

        return NeuralGraph.pack(spec_of_stack(self), params, self)

    def module(self) -> nn.Module:
        """A fresh ``nn.Module`` of this architecture whose state dict has exactly ``parameter_shapes()``."""
        return StackModule(self)


def _add(out: Tensor, residual: Tensor, layer: Layer) -> Tensor:
    """``out + residual`` on the channels (axis 2) that both have; the others of ``out`` stay."""
    if residual.shape[3:] != out.shape[3:]:
        raise UserError(
            f"layer {layer.name} adds a residual of size {list(residual.shape[3:])} to its map of {list(out.shape[3:])}"
        )
    shared = min(out.shape[2], residual.shape[2])
    if residual.shape[2] > shared:
        residual = residual[:, :, :shared]
    if out.shape[2] == shared:
        return out + residual
    return torch.cat([out[:, :, :shared] + residual, out[:, :, shared:]], 2)


def _pool(layer: Layer, h: Tensor) -> Tensor:
    if not layer.pool:
        return h
    if layer.pool == "global":
        return mean_over_positions(h)
    kind, _, size = layer.pool.partition(":")
    if kind == "max":
        return F.max_pool2d(h.transpose(0, 1).flatten(1, 2), int(size)).unflatten(1, (len(h), -1)).transpose(0, 1)
    raise UserError(f"layer {layer.name}: unknown pooling {layer.pool!r}")


class StackModule(nn.Module):
    """The network of a ``Stack``, with torch's default initialisation; inputs ``[K, d]`` or ``[K, c, h, w]``."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack
        for layer in stack.layers:
            child: nn.Module
            if layer.kernel:
                kh, kw = layer.kernel
                child = nn.Conv2d(layer.inputs, layer.outputs, (kh, kw), layer.stride, layer.padding, bias=layer.bias)
            else:
                child = nn.Linear(layer.inputs * layer.positions, layer.outputs, bias=layer.bias)
            parent: nn.Module = self
            *path, leaf = layer.name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(leaf, child)

    def forward(self, x: Tensor) -> Tensor:
        params = OrderedDict((name, value.unsqueeze(0)) for name, value in self.named_parameters())
        return self.stack.forward(params, x)[0]
