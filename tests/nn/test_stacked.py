"""Many architectures in one call, against the same networks bucket by bucket, and the plan that puts them in order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_graphs.bench._edge_list_twin import MixedEdgeListTwin
from neural_graphs.bench._machine import threads
from neural_graphs.bench._step import wild_park_batch
from neural_graphs.errors import UserError
from neural_graphs.graph import GraphBatch, NeuralGraph, Stack, trace
from neural_graphs.nn import NGGNN, Encoding, GraphHead, _parallel, create_encoder
from neural_graphs.nn import _edges as edges_module
from neural_graphs.nn import _stacked_edges as stacked_edges
from neural_graphs.nn._encoder import Reads
from neural_graphs.nn._stacking import Stacking, _stacking_of
from neural_graphs.testing import assert_equivariant, assert_invariant, random_graph, random_stack

READS: tuple[Reads, ...] = ("outputs", "nodes", "edges")


def encoder_for(graphs: Sequence[NeuralGraph], **arguments: Any) -> NGGNN:
    torch.manual_seed(0)
    encoder = create_encoder(
        "ng-gnn", **{"width": 8, "layers": 3, "inputs": 2, "kernel": (7, 7), "fourier": 5, **arguments}
    )
    assert isinstance(encoder, NGGNN)
    encoder.fit_normalization(graphs)
    return encoder.double().eval()


class Residual(torch.nn.Module):
    """Residuals between layers of several widths and depths."""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.first, self.inner = torch.nn.Linear(2, width), torch.nn.Linear(width, width)
        self.out = torch.nn.Linear(width, wide)
        self.last = torch.nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.tanh(self.inner(x) + x)
        return self.last(torch.sigmoid(self.out(x)))


def residual(width: int, wide: int, batch: int, seed: int = 0) -> NeuralGraph:
    torch.manual_seed(seed)
    graph = trace(Residual(width, wide).double(), torch.zeros(2, 2, dtype=torch.float64))
    shapes = {name: value.shape[1:] for name, value in graph.to_state_dict(batched=True).items()}
    return graph.like({name: torch.randn(batch, *shape, dtype=torch.float64) for name, shape in shapes.items()}, True)


def mixed(kinds: Sequence[Any] = ("mlp", "siren", "cnn"), seeds: int = 3) -> list[NeuralGraph]:
    """Random stacks and residual networks, several networks of some."""
    found = [random_graph(random_stack(seed, kind), 1 + seed % 2, seed=seed) for kind in kinds for seed in range(seeds)]
    return [*found, residual(4, 5, 2), residual(6, 3, 1)]


def tensors(encoding: Encoding) -> list[Tensor | None]:
    assert encoding.nodes is not None and encoding.edges is not None
    return [x for part in (*encoding.nodes, *encoding.edges) for x in part]


def bucket_by_bucket(encoder: NGGNN, batch: GraphBatch, reads: Reads) -> list[Tensor | None]:
    """The slow twin."""
    found = [encoder(graph, reads) for graph in batch.buckets]
    assert all(e.nodes is not None and e.edges is not None for e in found)
    return [x for e in found for x in e.nodes[0]] + [x for e in found for x in e.edges[0]]


def assert_equals_buckets(encoder: NGGNN, batch: GraphBatch, reads: Reads) -> None:
    """Embeddings, and the gradients of a random projection of them in every parameter, to 1e-10."""
    assert len(batch.buckets) > 1
    found, right = tensors(encoder(batch, reads)), bucket_by_bucket(encoder, batch, reads)
    assert [x is None for x in found] == [x is None for x in right]
    gradients = []
    for values in (found, right):
        generator = torch.Generator().manual_seed(1)
        parts = [x * torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in values if x is not None]
        total = torch.stack([part.sum() for part in parts]).sum()
        gradients.append(torch.autograd.grad(total, list(encoder.parameters()), allow_unused=True))
    for f, r in zip(found, right, strict=True):
        if f is not None and r is not None:
            torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10)
    for (name, _), f, r in zip(encoder.named_parameters(), *gradients, strict=True):
        zero = torch.zeros(1, dtype=torch.float64)  # an unused parameter has none, or zeros
        f, r = (zero if g is None else g for g in (f, r))
        torch.testing.assert_close(
            *torch.broadcast_tensors(f, r), rtol=1e-10, atol=1e-10 * float(r.abs().max().clamp_min(1)), msg=name
        )


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"reverse_edges": False},
        {"fourier": 0, "layers": 1},
        {
            "block_kinds": ["identity", "conv"],
            "activations": ["relu", "tanh", "sigmoid", "sine", "gelu", "silu", "leaky_relu"],
        },
    ],
    ids=["default", "one way", "linear", "kinds"],
)
def test_all_architectures_at_once(arguments: dict[str, Any], reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_edges, "CHUNK_ELEMENTS", 300)
    monkeypatch.setattr(edges_module, "WAVE_ELEMENTS", 200)
    graphs = mixed()
    assert_equals_buckets(encoder_for(graphs, **arguments), GraphBatch.of(graphs), reads)


def test_the_twin_for_mixed_architectures() -> None:
    """The benchmark's flat edge list gives the same embeddings and gradients."""
    graphs = mixed(("mlp", "cnn"), 2)
    encoder, batch = encoder_for(graphs, layers=2), GraphBatch.of(graphs)
    found, right = tensors(encoder(batch)), tensors(MixedEdgeListTwin(encoder).eval()(batch))
    gradients = [
        torch.autograd.grad(
            torch.stack([x.square().sum() for x in xs if x is not None]).sum(), list(encoder.parameters())
        )
        for xs in (found, right)
    ]
    for f, r in zip([*found, *gradients[0]], [*right, *gradients[1]], strict=True):
        assert f is not None and r is not None
        torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10 * float(r.detach().abs().max().clamp_min(1)))


def test_wild_park_networks() -> None:
    """What the benchmark runs, with residuals between maps of several widths; and batch mates do not matter."""
    batch = wild_park_batch(5)[0].to(torch.float64)
    assert len(batch.buckets) == 5
    assert any(block.kind == "identity" for graph in batch.buckets for block in graph.spec.blocks)
    encoder = encoder_for(batch.buckets, width=4, layers=2)
    for reads in READS:
        assert_equals_buckets(encoder, batch, reads)
    whole = tensors(encoder(batch, "nodes"))
    part = tensors(encoder(GraphBatch.of(batch.buckets[:2]), "nodes"))
    sets = sum(len(graph.spec.node_sets) for graph in batch.buckets[:2])
    for f, r in zip(part[:sets], whole[:sets], strict=True):
        assert f is not None and r is not None
        torch.testing.assert_close(f, r, rtol=1e-12, atol=1e-12)


def test_node_features_of_normalised_networks() -> None:
    """Several values per neuron, in all architectures or in some."""
    torch.manual_seed(0)
    modules = [
        torch.nn.Sequential(torch.nn.Linear(2, n), torch.nn.BatchNorm1d(n), torch.nn.ReLU(), torch.nn.Linear(n, 3))
        for n in (4, 6)
    ]
    graphs = [trace(m.double().eval(), torch.randn(3, 2, dtype=torch.float64)) for m in modules]
    graphs.append(random_graph(Stack.mlp((2, 5, 3)), 2))
    features = ("bias", "bias#2", "scale", "shift", "running_mean", "running_var")
    encoder = encoder_for(graphs, node_features=features)
    for reads in READS:
        assert_equals_buckets(encoder, GraphBatch.of(graphs), reads)


@pytest.mark.parametrize("shape", [(), (3, 9, 9)], ids=str)
def test_probes(shape: tuple[int, ...]) -> None:
    """Points for perceptrons, images for convolutional networks."""
    graphs = [random_graph(Stack.mlp((2, 3, n, 2), "sine:3"), 2, seed=n) for n in (4, 5)]
    if shape:
        graphs = list(wild_park_batch(4)[0].to(torch.float64).buckets)
    encoder = encoder_for(graphs, probes=4, inputs=graphs[0].spec.num_inputs, probe_shape=shape)
    assert_equals_buckets(encoder, GraphBatch.of(graphs), "outputs")


def test_gradients_in_the_networks() -> None:
    """Weights and biases get the gradients that they get bucket by bucket."""
    graphs = mixed(("mlp",), 2)
    encoder = encoder_for(graphs)
    found = []
    for together in (True, False):
        batch = GraphBatch.of(graphs)
        batch = GraphBatch(tuple(g.map(lambda t: t.clone().requires_grad_()) for g in batch.buckets), batch.index)
        encodings = [encoder(batch)] if together else [encoder(graph) for graph in batch.buckets]
        values = [x for e in encodings for x in tensors(e) if x is not None]
        leaves = [t for g in batch.buckets for t in (*g.nodes, *g.edges) if t.numel()]
        total = torch.stack([x.square().sum() for x in values]).sum()
        found.append(torch.autograd.grad(total, leaves))
    for f, r in zip(*found, strict=True):
        assert r.abs().max() > 0
        torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10 * float(r.abs().max()))


def test_ties_are_shared() -> None:
    """Of equal largest and smallest messages each gets the same share of the gradient."""
    graphs = [random_graph(Stack.mlp((2, n, 1)), 1) for n in (4, 5)]
    stacking = Stacking.of(graphs, 1, False, "nodes")
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 3), (6,)))
    z = torch.zeros(stacking.edges(1), 3, dtype=torch.float64)
    sender = torch.randn(stacking.live[0], 3, generator=generator, dtype=torch.float64)
    output = stacking.node_rank[2 + 4]  # of the first network, behind its inputs and hidden neurons
    hidden = stacking.sender[stacking.receiver == output]
    sender[hidden] = sender[hidden[0]].clone()
    sender.requires_grad_()
    receiver = torch.zeros(stacking.live[1], 3, dtype=torch.float64)
    _, _, low, high, _ = stacked_edges.stacked_statistics(z, weight, bias, receiver, sender, stacking, 1, len(z))
    for extreme in (low, high):
        (grad,) = torch.autograd.grad(extreme[output].sum(), sender, retain_graph=True)
        torch.testing.assert_close(grad[hidden], (bias[:3] / 4).expand(4, 3))


def test_symmetries() -> None:
    graph, other = residual(4, 5, 2), random_graph(Stack.mlp((2, 6, 3)), 1)
    encoder = encoder_for([graph, other])

    def beside(batch: GraphBatch) -> Encoding:
        both = encoder(GraphBatch.of([*GraphBatch.of(batch).buckets, other]))
        assert both.nodes is not None and both.edges is not None
        return Encoding(GraphBatch.of(batch), both.nodes[:1], both.edges[:1])

    head = GraphHead(encoder.width, 3, 2).double()
    assert_equivariant(beside, graph)
    assert_invariant(lambda batch: head(beside(batch)), graph)


def test_networks_without_edges_or_messages() -> None:
    """One way, nothing ends in an input; empty batches of some architecture."""
    graphs = [
        random_graph(Stack.mlp((2, 3, 1)), 2),
        random_graph(Stack.mlp((2, 1)), 1),
        random_graph(Stack.mlp((2, 4, 1)), 2)[:0],
    ]
    encoder = encoder_for(graphs[:2], reverse_edges=False)
    assert_equals_buckets(encoder, GraphBatch.of(graphs), "edges")
    assert encoder(graphs).nodes[2][1].shape == (0, 4, encoder.width)


def test_bfloat16_edges_stay_near_float32() -> None:
    graphs = [graph.to(torch.float32) for graph in mixed(("mlp",), 2)]
    encoder = encoder_for(graphs).float()
    exact = encoder(graphs, "outputs").nodes[0][-1]
    encoder.edge_dtype = torch.bfloat16
    rounded = encoder(graphs, "outputs").nodes[0][-1]
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    rounded.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_networks_that_do_not_fit_are_refused() -> None:
    graphs = [random_graph(Stack.mlp((2, 4, 1)), 1), random_graph(Stack.mlp((2, 4, 17)), 1)]
    with pytest.raises(UserError, match="up to 16 inputs and outputs"):
        encoder_for(graphs)(graphs)


def test_chunks_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers give what one gives, in every run the same, also when nothing is differentiated; threads stay as set."""
    monkeypatch.setattr(stacked_edges, "CHUNK_ELEMENTS", 1000)
    monkeypatch.setattr(edges_module, "WAVE_ELEMENTS", 2000)
    graphs = mixed(("mlp", "cnn"), 2)
    encoder, batch = encoder_for(graphs), GraphBatch.of(graphs)
    parameters = list(encoder.parameters())

    def values() -> list[Tensor]:
        found = [x for x in tensors(encoder(batch)) if x is not None]
        return [*found, *torch.autograd.grad(torch.stack([x.square().sum() for x in found]).sum(), parameters)]

    with threads(1):
        right = values()
    with threads(2):
        first, second = values(), values()
        with torch.inference_mode():
            inferred = [x for x in tensors(encoder(batch)) if x is not None]
        assert torch.get_num_threads() == 2
    for f, s, r in zip(first, second, right, strict=True):
        assert torch.equal(f, s)
        torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10 * float(r.detach().abs().max().clamp_min(1)))
    for f, i in zip(first, inferred, strict=False):
        torch.testing.assert_close(i, f.detach(), rtol=1e-12, atol=1e-12)


def test_what_is_kept_of_inference_serves_training() -> None:
    """The order of a mixture that was first seen without gradients, as in a validation, is that of a training step."""
    graphs = mixed(("mlp", "cnn"), 2)
    encoder, batch = encoder_for(graphs), GraphBatch.of(graphs)
    found = []
    for inferred_before in (False, True):
        _stacking_of.cache_clear()
        if inferred_before:
            with torch.inference_mode():
                encoder(batch)
        encoder.zero_grad()
        torch.stack([x.square().sum() for x in tensors(encoder(batch)) if x is not None]).sum().backward()
        found.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert len(found[0]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("count", [2, 3])
def test_each_piece_has_its_worker(count: int) -> None:
    """One thread per worker, its pieces in order, operations not split; an error comes out; new threads are as before."""
    seen: list[tuple[int, int, int, bool]] = []

    def work(worker: int, piece: int) -> None:
        seen.append((worker, piece, torch.get_num_threads(), torch.is_grad_enabled()))
        if piece == 7:
            raise ValueError("piece 7")

    with threads(count):
        assert _parallel.workers(9, torch.device("cpu")) == count
        assert _parallel.workers(1, torch.device("cpu")) == 1
        _parallel.each(work, range(7), count)
        with pytest.raises(ValueError, match="piece 7"):
            _parallel.each(work, [0, 7, 1], count)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == count
    for worker in range(count):
        assert [piece for w, piece, *_ in seen if w == worker][: len(range(worker, 7, count))] == [
            *range(worker, 7, count)
        ]
    assert {(n, grad) for *_, n, grad in seen} == {(1, False)}


# -- the plan -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 40, 10**9])
def test_chunks_cover_every_edge_once(rows: int) -> None:
    graphs = GraphBatch.of(mixed()).buckets
    stacking = Stacking.of(graphs, 3, True, "outputs")
    for layer in (1, 2, 3):
        chunks = stacking.chunks(layer, rows)
        edges = [e for chunk in chunks for e in range(chunk.edges.start, chunk.edges.stop)]
        assert edges == list(range(stacking.edges(layer)))
        for chunk in chunks:
            assert chunk.rows <= rows or chunk.nodes.stop - chunk.nodes.start == 1
            degree = stacking.degree[chunk.nodes]
            assert torch.equal(chunk.offsets.diff(), degree) and chunk.rows == int(degree.sum())
            assert torch.equal(chunk.local, torch.arange(len(degree)).repeat_interleave(degree))
            inside = [run.first for run in chunk.runs] + [len(degree)]
            assert inside[0] == 0 and all(run.last == after for run, after in zip(chunk.runs, inside[1:], strict=True))
            for run in chunk.runs:
                assert bool((degree[run.first : run.last] * (run.last - run.first) == run.stop - run.start).all())
    assert bool((stacking.receiver.diff() >= 0).all())
