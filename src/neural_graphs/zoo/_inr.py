"""Bulk fitting of implicit neural representations (INRs): many small multilayer perceptrons of one architecture at once.

Forward pass, backward pass and Adam are written out by hand on stacked parameters, so that a step is a handful of batched
matrix products and pointwise passes over buffers that are allocated once. Networks are fitted in chunks small enough to stay
in the processor's cache; every chunk runs on one thread, several chunks side by side.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._stack import Stack

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
CACHE_BYTES = 8 * 2**20  # activations of one chunk: measured to stay in a shared L3 cache and hide Python's overhead
DEVICE_BYTES = 2 * 2**30  # the same on an accelerator, where only memory bounds a chunk
COMPILE_PAYS_AFTER = 5e9  # pointwise evaluations; compiling costs about 4 s and saves about 1.6 ns per evaluation


def pixel_grid(height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Coordinates ``[height * width, 2]`` of the pixels row by row, as (column, row), each in ``linspace(-1, 1)``."""
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, height, dtype=dtype), torch.linspace(-1, 1, width, dtype=dtype), indexing="ij"
    )
    return torch.stack((columns.flatten(), rows.flatten()), dim=1)


# -- initial weights ----------------------------------------------------------------------------------------------


def _init_bounds(stack: Stack, init: str) -> list[tuple[float, float]]:
    """Half-widths of the uniform distributions of (weight, bias) per layer."""
    bounds = []
    last = len(stack.layers) - 1
    for index, layer in enumerate(stack.layers):
        torch_bound = 1 / math.sqrt(layer.fan_in)  # torch's default, for weights and biases alike
        if layer.activation.kind == "sine":
            weight = math.sqrt(6 / layer.fan_in) / layer.activation.omega
            if init == "siren" and index == 0:
                weight = 1 / layer.fan_in
            bias = torch_bound if init == "siren" else 0.0
        elif index == last and init == "siren":
            before = stack.layers[index - 1].activation if index else Activation()
            weight = math.sqrt(6 / layer.fan_in) / before.omega if before.kind == "sine" else torch_bound
            bias = torch_bound
        else:
            weight = torch_bound if index == last else math.sqrt(6 / layer.fan_in)
            bias = torch_bound
        bounds.append((weight, bias))
    return bounds


INITS = ("dws", "siren")


def initial_parameters(stack: Stack, init: str, seed: int, networks: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
    """Initial weights of the given networks of a zoo, stacked: ``{name: [n, *shape]}``, float32.

    Network i draws from its own counter-based stream (Philox with key (seed, i)), so that its weights depend on the seed,
    its number and the architecture alone. ``init`` is ``"dws"`` (sine layers U(±sqrt(6/fan_in)/ω0) without a special first
    layer and with zero biases) or ``"siren"`` (Sitzmann et al. 2020, section 3.2: first layer U(±1/fan_in)).
    """
    if init not in INITS:
        raise UserError(f"unknown initialisation {init!r}: choose one of {', '.join(INITS)}")
    total = stack.num_parameters
    uniform = np.empty((len(networks), total), dtype=np.float32)
    for row, network in enumerate(networks):
        np.random.Generator(np.random.Philox(key=[seed, int(network)])).random(out=uniform[row], dtype=np.float32)
    draws = torch.from_numpy(uniform).mul_(2).sub_(1)
    values: dict[str, Tensor] = {}
    offset = 0
    bounds = {}
    for layer, (weight, bias) in zip(stack.layers, _init_bounds(stack, init), strict=True):
        bounds[layer.weight] = weight
        if layer.bias_name:
            bounds[layer.bias_name] = bias
    for name, shape in stack.parameter_shapes().items():
        size = math.prod(shape)
        values[name] = (draws[:, offset : offset + size] * bounds[name]).view(-1, *shape)
        offset += size
    return values


# -- pointwise kernels --------------------------------------------------------------------------------------------


def _sine(z: Tensor, bias: Tensor, h: Tensor) -> None:
    z0 = z + bias
    h.copy_(torch.sin(z0))
    z.copy_(torch.cos(z0))


def _relu(z: Tensor, bias: Tensor, h: Tensor) -> None:
    z0 = z + bias
    h.copy_(torch.relu(z0))
    z.copy_((z0 > 0).to(z0.dtype))


def _leaky_relu(z: Tensor, bias: Tensor, h: Tensor) -> None:
    z0 = z + bias
    slope = torch.where(z0 > 0, 1.0, 0.01).to(z0.dtype)
    h.copy_(z0 * slope)
    z.copy_(slope)


def _tanh(z: Tensor, bias: Tensor, h: Tensor) -> None:
    value = torch.tanh(z + bias)
    h.copy_(value)
    z.copy_(1 - value * value)


def _sigmoid(z: Tensor, bias: Tensor, h: Tensor) -> None:
    value = torch.sigmoid(z + bias)
    h.copy_(value)
    z.copy_(value * (1 - value))


def _silu(z: Tensor, bias: Tensor, h: Tensor) -> None:
    z0 = z + bias
    gate = torch.sigmoid(z0)
    h.copy_(z0 * gate)
    z.copy_(gate * (1 + z0 * (1 - gate)))


def _gelu(z: Tensor, bias: Tensor, h: Tensor) -> None:
    z0 = z + bias
    phi = 0.5 * (1 + torch.erf(z0 * math.sqrt(0.5)))
    h.copy_(z0 * phi)
    z.copy_(phi + z0 * torch.exp(-0.5 * z0 * z0) * (1 / math.sqrt(2 * math.pi)))


Pointwise = Callable[[Tensor, Tensor, Tensor], None]

# Each overwrites h with f(z + bias) and z with f'(z + bias).
_KERNELS: dict[str, Pointwise] = {
    "sine": _sine,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "gelu": _gelu,
}


def _sine_in_place(z: Tensor, bias: Tensor, h: Tensor) -> None:
    """``_sine`` without temporaries, for when there is no compiler."""
    z.add_(bias)
    torch.sin(z, out=h)
    z.cos_()


_EAGER: dict[str, Pointwise] = {**_KERNELS, "sine": _sine_in_place}
_compiled: dict[str, Pointwise] = {}
_compile_lock = threading.Lock()


def _pointwise(kind: str, device: torch.device, dtype: torch.dtype, compiled: bool) -> Pointwise:
    """The kernel of an activation: fused by torch.compile where asked for and possible, else eager."""
    if not compiled:
        return _EAGER[kind]
    with _compile_lock:
        key = f"{kind} {device.type} {dtype}"
        if key not in _compiled:
            _compiled[key] = _compile(kind, device, dtype)
        return _compiled[key]


def _compile(kind: str, device: torch.device, dtype: torch.dtype) -> Pointwise:
    options: dict[str, Any] = {"cpp.threads": 1, "compile_threads": 1} if device.type == "cpu" else {}
    kernel: Pointwise = torch.compile(_KERNELS[kind], dynamic=True, options=options)
    z = torch.zeros(4, 6, 40, device=device, dtype=dtype)
    try:
        kernel(z, torch.zeros(4, 6, 1, device=device, dtype=dtype), torch.empty_like(z))
    except Exception:  # no C++ compiler, no Triton, an unsupported platform: the eager kernel computes the same
        return _EAGER[kind]
    return kernel


# -- fitting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitOptions:
    """How to fit: full-batch Adam (betas 0.9, 0.999, eps 1e-8) on the mean squared error over all pixels and colours."""

    steps: int = 1000
    lr: float = 1e-3
    device: str = "cpu"
    threads: int | None = None  # None: one per core of the machine; more than one runs that many chunks at once
    chunk: int | None = None  # networks fitted together; None: what fits the cache
    compile: bool | None = None  # None: when it pays


class _Segments:
    """Views of one flat tensor, parameter after parameter, each contiguous ``[n, rows, columns]``."""

    def __init__(self, stack: Stack, n: int, flat: Tensor) -> None:
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        offset = 0
        for layer in stack.layers:
            size = n * layer.outputs * layer.inputs
            self.weights.append(flat[offset : offset + size].view(n, layer.outputs, layer.inputs))
            offset += size
            self.biases.append(flat[offset : offset + n * layer.outputs].view(n, layer.outputs, 1))
            offset += n * layer.outputs


class _Chunk:
    """Parameters, Adam state and buffers of n networks under fitting.

    A sine's frequency ω0 is folded into the weights: ``effective = scale * parameters`` with scale ω0 for the layers that
    a sine follows, and gradients are multiplied by the same factor.
    """

    def __init__(
        self,
        stack: Stack,
        params: dict[str, Tensor],
        coords: Tensor,
        targets: Tensor,
        options: FitOptions,
        compiled: bool,
    ) -> None:
        device = torch.device(options.device)
        dtype = coords.dtype
        n, channels, pixels = targets.shape
        self.stack, self.options, self.n = stack, options, n
        self.inputs = coords.T.contiguous().to(device).expand(n, coords.shape[1], pixels)
        self.targets = (targets - stack.shift).to(device)
        size = n * stack.num_parameters
        self.flat, self.scale = torch.empty(size, dtype=dtype), torch.empty(size, dtype=dtype)
        own, factors = _Segments(stack, n, self.flat), _Segments(stack, n, self.scale)
        for index, layer in enumerate(stack.layers):
            own.weights[index].copy_(params[layer.weight])
            own.biases[index].copy_(params[f"{layer.name}.bias"].unsqueeze(-1))
            factors.weights[index].fill_(layer.activation.omega)
            factors.biases[index].fill_(layer.activation.omega)
        self.flat, self.scale = self.flat.to(device), self.scale.to(device)
        self.grad, self.m, self.v = (torch.zeros_like(self.flat) for _ in range(3))
        self.effective, self.work = self.flat * self.scale, torch.empty_like(self.flat)
        self.own = _Segments(stack, n, self.flat)
        self.now = _Segments(stack, n, self.effective)
        self.slope = _Segments(stack, n, self.grad)
        hidden = stack.layers[:-1]
        self.values = [torch.empty(n, layer.outputs, pixels, dtype=dtype, device=device) for layer in hidden]
        self.slopes = [torch.empty_like(value) for value in self.values]
        self.residual = torch.empty(n, channels, pixels, dtype=dtype, device=device)
        self.kernels = [_pointwise(layer.activation.kind, device, dtype, compiled) for layer in hidden]
        self.step_count = 0

    def forward(self) -> None:
        """Fills ``values`` with activations, ``slopes`` with their derivatives and ``residual`` with output - target."""
        h = self.inputs
        for index, kernel in enumerate(self.kernels):
            z = self.slopes[index]
            torch.bmm(self.now.weights[index], h, out=z)
            h = self.values[index]
            kernel(z, self.now.biases[index], h)
        torch.bmm(self.now.weights[-1], h, out=self.residual)
        self.residual.add_(self.now.biases[-1]).sub_(self.targets)

    def backward(self) -> None:
        """Gradients of the sum over networks of the mean squared error, in ``grad`` (with respect to ``effective``)."""
        channels, pixels = self.residual.shape[1:]
        dz = self.residual.mul_(2 / (channels * pixels))
        for index in range(len(self.stack.layers) - 1, -1, -1):
            before = self.values[index - 1] if index else self.inputs
            torch.bmm(dz, before.transpose(1, 2), out=self.slope.weights[index])
            torch.sum(dz, -1, keepdim=True, out=self.slope.biases[index])
            if index:
                # The activations of the layer before are used up: their buffer takes the gradient that flows back.
                flow = torch.bmm(self.now.weights[index].transpose(1, 2), dz, out=before)
                dz = self.slopes[index - 1].mul_(flow)

    def adam(self) -> None:
        """One step of Adam (Kingma & Ba 2015, algorithm 1), in the order of operations of ``torch.optim.Adam``."""
        self.step_count += 1
        beta1, beta2 = ADAM_BETAS
        grad = self.grad.mul_(self.scale)
        self.m.lerp_(grad, 1 - beta1)
        self.v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        torch.sqrt(self.v, out=self.work)
        self.work.div_(math.sqrt(1 - beta2**self.step_count)).add_(ADAM_EPS)
        self.flat.addcdiv_(self.m, self.work, value=-self.options.lr / (1 - beta1**self.step_count))
        torch.mul(self.flat, self.scale, out=self.effective)

    def run(self, stop: threading.Event) -> bool:
        """All steps; False when ``stop`` was set in between."""
        for _ in range(self.options.steps):
            if stop.is_set():
                return False
            self.forward()
            self.backward()
            self.adam()
        self.forward()
        return True

    def result(self) -> tuple[dict[str, Tensor], Tensor]:
        """Fitted parameters ``{name: [n, *shape]}`` and mean squared errors ``[n]``, on the CPU."""
        fitted: dict[str, Tensor] = {}
        for index, layer in enumerate(self.stack.layers):
            fitted[layer.weight] = self.own.weights[index].cpu()
            fitted[f"{layer.name}.bias"] = self.own.biases[index].squeeze(-1).cpu()
        return fitted, self.residual.square().mean((1, 2)).cpu()


def chunk_size(stack: Stack, pixels: int, device: str = "cpu") -> int:
    """Networks to fit together, from the architecture and the image alone: the same on every machine."""
    per_network = 4 * pixels * (2 * sum(layer.outputs for layer in stack.layers[:-1]) + 2 * stack.widths[-1])
    budget = CACHE_BYTES if torch.device(device).type == "cpu" else DEVICE_BYTES
    return max(4, min(4096, budget // per_network))


def compile_pays(stack: Stack, pixels: int, networks: int, steps: int) -> bool:
    """Whether fusing the activation kernels saves more time than compiling them takes."""
    return networks * steps * pixels * sum(layer.outputs for layer in stack.layers[:-1]) > COMPILE_PAYS_AFTER


def check_fittable(stack: Stack) -> None:
    """Raises ``UserError`` unless ``stack`` is a multilayer perceptron with biases and a linear output."""
    if any(layer.kernel or layer.positions != 1 or not layer.bias for layer in stack.layers):
        raise UserError(f"cannot fit {stack}: bulk fitting knows linear layers with biases only")
    if stack.layers[-1].activation.kind != "none" or any(x.activation.kind == "none" for x in stack.layers[:-1]):
        raise UserError(f"cannot fit {stack}: every hidden layer needs an activation and the output must have none")


def fit_networks(
    stack: Stack,
    params: dict[str, Tensor],
    coords: Tensor,
    targets: Tensor,
    options: FitOptions | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Fits n networks of one architecture to n signals.

    ``params`` holds the initial weights ``{name: [n, *shape]}``, ``coords`` the inputs ``[K, d]`` that all share,
    ``targets`` the signals ``[n, C, K]``; all of one dtype (float32 or float64). Returns the fitted weights (same names
    and shapes) and the mean squared error of each network ``[n]``. ``on_progress`` is told the number of networks
    finished since the last call. KeyboardInterrupt stops after the step in work.
    """
    options = options or FitOptions()
    check_fittable(stack)
    n, _, pixels = targets.shape
    size = options.chunk or chunk_size(stack, pixels, options.device)
    compiled = options.compile if options.compile is not None else compile_pays(stack, pixels, n, options.steps)
    fitted = {name: torch.empty_like(value) for name, value in params.items()}
    errors = torch.empty(n, dtype=targets.dtype)
    stop = threading.Event()

    def fit(rows: slice) -> int:
        torch.set_num_threads(1 if workers > 1 else threads)
        part = {name: value[rows] for name, value in params.items()}
        chunk = _Chunk(stack, part, coords, targets[rows], options, compiled)
        if chunk.run(stop):
            values, errors[rows] = chunk.result()
            for name, value in values.items():
                fitted[name][rows] = value
        return rows.stop - rows.start

    slices = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    threads = options.threads or (os.cpu_count() or 1)
    workers = min(threads, len(slices)) if torch.device(options.device).type == "cpu" else 1
    for done in _run_all(fit, slices, workers, stop):
        if on_progress:
            on_progress(done)
    return fitted, errors


def _run_all(fit: Callable[[slice], int], slices: list[slice], workers: int, stop: threading.Event) -> Iterator[int]:
    """Runs ``fit`` on every slice in ``workers`` threads and yields results as they come; stops them on any exception."""
    outside = torch.get_num_threads()
    with torch.no_grad(), ThreadPoolExecutor(workers) as pool:
        try:
            pending = {pool.submit(torch.no_grad()(fit), rows) for rows in slices}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(outside)


def psnr(mse: Tensor, value_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors, for signals that span ``value_range``."""
    return 10 * torch.log10(value_range**2 / mse.clamp_min(1e-12))
