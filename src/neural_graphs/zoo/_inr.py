"""Bulk fitting of implicit neural representations (INRs): many small multilayer perceptrons of one architecture at once.

Forward pass, backward pass and Adam are written out by hand on stacked parameters, so that a step is a handful of batched
matrix products and pointwise passes over buffers that are allocated once. Networks are fitted in chunks small enough to stay
in the processor's cache; every chunk runs on one thread, several chunks side by side.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neural_graphs.errors import UserError
from neural_graphs.graph._activation import Activation
from neural_graphs.graph._kernels import ADAM_BETAS, kernel
from neural_graphs.graph._rendering import pixel_grid as pixel_grid
from neural_graphs.graph._stack import Stack

CACHE_BYTES = 8 * 2**20  # activations of one chunk: measured to stay in a shared L3 cache and hide Python's overhead
DEVICE_BYTES = 2 * 2**30  # the same on an accelerator, where only memory bounds a chunk
COMPILE_PAYS_AFTER = 5e9  # pointwise evaluations; compiling costs about 4 s and saves about 1.6 ns per evaluation


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
        self.effective = self.flat * self.scale
        self.own = _Segments(stack, n, self.flat)
        self.now = _Segments(stack, n, self.effective)
        self.slope = _Segments(stack, n, self.grad)
        hidden = stack.layers[:-1]
        self.values = [torch.empty(n, layer.outputs, pixels, dtype=dtype, device=device) for layer in hidden]
        self.slopes = [torch.empty_like(value) for value in self.values]
        self.residual = torch.empty(n, channels, pixels, dtype=dtype, device=device)
        self.kernels = [kernel(layer.activation.kind, device, dtype, compiled) for layer in hidden]
        self.update = kernel("adam", device, dtype, compiled)
        self.schedule = _adam_schedule(options, device, dtype)
        self.step_count = 0

    def forward(self) -> None:
        """Fills ``values`` with activations, ``slopes`` with their derivatives and ``residual`` with output - target."""
        h = self.inputs
        for index, activate in enumerate(self.kernels):
            z = self.slopes[index]
            torch.bmm(self.now.weights[index], h, out=z)
            h = self.values[index]
            activate(z, self.now.biases[index], h)
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
        """One step of Adam (Kingma & Ba 2015, algorithm 1), and the effective parameters of the next step."""
        size, root = self.schedule[self.step_count]
        state = (self.flat, self.effective, self.grad, self.m, self.v, self.scale)
        self.update(*state, size, root)
        self.step_count += 1

    def run(self, stop: threading.Event, trace: Tensor | None = None) -> bool:
        """All steps; False when ``stop`` was set in between. ``trace`` ``[steps, n]`` takes the errors before each."""
        for step in range(self.options.steps):
            if stop.is_set():
                return False
            self.forward()
            if trace is not None:
                trace[step] = self.residual.square().mean((1, 2))
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


def _adam_schedule(options: FitOptions, device: torch.device, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """(size, root) of ``_adam`` for every step, as scalar tensors."""
    t = torch.arange(1, options.steps + 1, dtype=torch.float64)
    sizes = options.lr / (1 - ADAM_BETAS[0] ** t)
    roots = (1 - ADAM_BETAS[1] ** t).sqrt()
    return list(zip(sizes.to(device, dtype).unbind(), roots.to(device, dtype).unbind(), strict=True))


def chunk_size(stack: Stack, pixels: int, networks: int, device: str = "cpu") -> int:
    """Networks to fit together. The same on every machine, however many threads it has, so that its networks are too."""
    per_network = 4 * pixels * (2 * sum(layer.outputs for layer in stack.layers[:-1]) + 2 * stack.widths[-1])
    if torch.device(device).type != "cpu":
        return max(1, DEVICE_BYTES // per_network)
    # At least eight chunks, for the threads to share evenly, unless they become too small to hide Python's overhead.
    return max(4, min(CACHE_BYTES // per_network, max(16, -(-networks // 8))))


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
    pool: ThreadPoolExecutor | None = None,
    trace: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Fits n networks of one architecture to n signals.

    ``params`` holds the initial weights ``{name: [n, *shape]}``, ``coords`` the inputs ``[K, d]`` that all share,
    ``targets`` the signals ``[n, C, K]``; all of one dtype (float32 or float64). Returns the fitted weights (same names
    and shapes) and the mean squared error of each network ``[n]``. ``on_progress`` is told the number of networks
    finished since the last call. KeyboardInterrupt stops after the step in work. Callers that fit again and again pass a
    ``worker_pool``: new threads each time would leave their memory behind. ``trace`` ``[steps, n]`` is filled with the error
    of every network before each step.
    """
    options = options or FitOptions()
    check_fittable(stack)
    n, _, pixels = targets.shape
    size = options.chunk or chunk_size(stack, pixels, n, options.device)
    compiled = options.compile if options.compile is not None else compile_pays(stack, pixels, n, options.steps)
    fitted = {name: torch.empty_like(value) for name, value in params.items()}
    errors = torch.empty(n, dtype=targets.dtype)
    stop = threading.Event()

    def fit(rows: slice) -> int:
        torch.set_num_threads(1)
        part = {name: value[rows] for name, value in params.items()}
        chunk = _Chunk(stack, part, coords, targets[rows], options, compiled)
        if chunk.run(stop, None if trace is None else trace[:, rows]):
            values, errors[rows] = chunk.result()
            for name, value in values.items():
                fitted[name][rows] = value
        return rows.stop - rows.start

    slices = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    with contextlib.nullcontext(pool) if pool else worker_pool(options) as threads:
        for done in _run_all(fit, slices, threads, stop):
            if on_progress:
                on_progress(done)
    return fitted, errors


def worker_pool(options: FitOptions) -> ThreadPoolExecutor:
    """The threads that fit chunks side by side; one on an accelerator."""
    if torch.device(options.device).type != "cpu":
        return ThreadPoolExecutor(1)
    return ThreadPoolExecutor(options.threads or os.cpu_count() or 1)


def _run_all(
    fit: Callable[[slice], int], slices: list[slice], pool: ThreadPoolExecutor, stop: threading.Event
) -> Iterator[int]:
    """Runs ``fit`` on every slice and yields results as they come; on any exception stops them all and waits for them."""
    outside = torch.get_num_threads()
    every = [pool.submit(torch.no_grad()(fit), rows) for rows in slices]
    try:
        for future in as_completed(every):
            yield future.result()
    except BaseException:
        stop.set()
        for future in every:
            future.cancel()
        wait(every)
        raise
    finally:
        torch.set_num_threads(outside)


def psnr(mse: Tensor, value_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors, for signals that span ``value_range``."""
    return 10 * torch.log10(value_range**2 / mse.clamp_min(1e-12))
