"""NG-T, both variants, against its textbook twin, on every kind of network, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neural_graphs.bench._all_pairs_twin import AllPairsTwin
from neural_graphs.errors import UserError
from neural_graphs.graph import NeuralGraph, Stack
from neural_graphs.nn import NGT, Encoding, GraphHead, _products, create_encoder
from neural_graphs.nn import _edges as edges_module
from neural_graphs.nn._attention import attend
from neural_graphs.nn._edge_mlp import edge_update
from neural_graphs.nn._transformer import DROPOUT_STEPS, _mask
from neural_graphs.testing import assert_equivariant, assert_invariant, random_graph, random_stack

ATTENTION = ["blocks", "all"]
SIREN = Stack.mlp((2, 7, 5, 2), "sine:30", shift=0.5)
SMALL: dict[str, Any] = {
    "width": 8,
    "edge_width": 6,
    "attention_width": 12,
    "hidden": 10,
    "edge_hidden": 7,
    "heads": 3,
    "layers": 3,
    "fourier": 6,
}


def encoder_for(stack: Stack, dtype: torch.dtype = torch.float64, **arguments: Any) -> NGT:
    torch.manual_seed(0)
    kernel = [1, 1]
    for layer in stack.layers:
        side = math.isqrt(layer.positions)
        kernel = [max(kernel[0], *layer.kernel, side), max(kernel[1], *layer.kernel, side)]
    encoder = create_encoder("ng-t", **{**SMALL, "inputs": stack.widths[0], "kernel": kernel, **arguments})
    assert isinstance(encoder, NGT)
    encoder.fit_normalization([random_graph(stack, 3, seed=5)])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in encoder.parameters():  # biases and norms as after some training
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return encoder.to(dtype).eval()


def tensors(encoding: Encoding) -> list[Tensor]:
    assert encoding.nodes is not None and encoding.edges is not None
    return [x for part in (*encoding.nodes, *encoding.edges) for x in part if x is not None]


def gradients(encoder: NGT, values: list[Tensor]) -> list[Tensor]:
    """Of a random projection of ``values`` in every parameter."""
    generator = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in values)
    found = torch.autograd.grad(total, list(encoder.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(encoder.parameters(), found, strict=True)]


def assert_equals_twin(encoder: NGT, graph: NeuralGraph) -> None:
    """Embeddings and the gradients in every parameter, for everything that can be read."""
    twin = AllPairsTwin(encoder).eval()
    count = len(graph.spec.node_sets)
    parts = {"edges": slice(None), "nodes": slice(count), "outputs": slice(count - 1, count)}
    for reads, part in parts.items():
        found, right = tensors(encoder(graph, reads=reads)), tensors(twin(graph))[part]
        for f, r in zip(found, right, strict=True):
            torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10)
        slopes = gradients(encoder, found), gradients(encoder, right)
        for (name, _), f, r in zip(encoder.named_parameters(), *slopes, strict=True):
            torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10 * float(r.abs().max().clamp_min(1)), msg=name)


@pytest.mark.parametrize("chunk", [1, 300, 1 << 19])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("attention", ATTENTION)
def test_sirens_equal_the_twin(attention: str, reverse: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges_module, "CHUNK_ELEMENTS", chunk)
    assert_equals_twin(encoder_for(SIREN, attention=attention, reverse_edges=reverse, probes=4), random_graph(SIREN, 3))


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize(("kind", "seed"), [("mlp", 0), ("siren", 1), ("cnn", 0), ("cnn", 1)])
def test_random_stacks_equal_the_twin(kind: Any, seed: int, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges_module, "CHUNK_ELEMENTS", 2000)
    stack = random_stack(seed, kind)
    encoder = encoder_for(stack, attention=attention, layers=2, fourier=seed * 6, reverse_edges=kind != "siren")
    assert_equals_twin(encoder, random_graph(stack, 2))


def test_the_twin_notices_a_wrong_parameter() -> None:
    encoder, graph = encoder_for(SIREN), random_graph(SIREN, 2)
    right = tensors(AllPairsTwin(encoder).eval()(graph))[3].detach()
    with torch.no_grad():
        encoder.edge_mlps[0].out.bias[0] += 1e-3
    assert (tensors(encoder(graph))[3] - right).abs().max() > 1e-6


def test_the_two_kinds_of_attention_differ() -> None:
    blocks, pairs = encoder_for(SIREN, attention="blocks"), encoder_for(SIREN, attention="all")
    pairs.load_state_dict(blocks.state_dict())
    graph = random_graph(SIREN, 2)
    assert (tensors(blocks(graph))[3] - tensors(pairs(graph))[3]).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("kind", ["siren", "cnn"])
def test_random_stacks_are_encoded_equivariantly(kind: Any, attention: str) -> None:
    stack = random_stack(2, kind)
    encoder, graph = encoder_for(stack, attention=attention), random_graph(stack, 3)
    head = GraphHead(encoder.width, stack.widths[-1], 3).double()
    assert_equivariant(encoder, graph)
    assert_invariant(lambda batch: head(encoder(batch, reads="outputs")), graph)


@pytest.mark.parametrize("attention", ATTENTION)
def test_single_layer(attention: str) -> None:
    assert_equals_twin(encoder_for(SIREN, attention=attention, layers=1), random_graph(SIREN, 2))


# -- the fused operations -------------------------------------------------------------------------------------------------


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def assert_same(found: list[Tensor], right: list[Tensor], inputs: list[Tensor]) -> None:
    """Equal values, and equal gradients of a random projection of them."""
    into = [draw(*r.shape, seed=k).detach() for k, r in enumerate(right)]
    slopes = [
        torch.autograd.grad(sum((v * g).sum() for v, g in zip(values, into, strict=True)), inputs)
        for values in (found, right)
    ]
    for f, r in zip((*found, *slopes[0]), (*right, *slopes[1]), strict=True):
        torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 200, 500, 1 << 20])
@pytest.mark.parametrize("own_logits", [0, 2])
def test_attention_over_grouped_blocks(own_logits: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve receivers of each of two networks attend to dense blocks, blocks in 2 and 3 groups and one by one."""
    monkeypatch.setattr(edges_module, "CHUNK_ELEMENTS", chunk)
    batch, n, heads, width, d = 2, 12, 2, 6, 3
    maps = [draw(width, d, seed=k) for k in range(3)]
    query, own = draw(batch, n, width, seed=3), draw(batch, n, heads, own_logits, seed=4)
    blocks = [
        (
            draw(batch * g, n // g, s, d, seed=5 + g),
            draw(batch * g, s, width, seed=9),
            draw(batch * g, s, width, seed=10),
        )
        for g, s in ((1, 4), (2, 3), (3, 1), (12, 2))
    ]
    found = attend((maps[0], maps[1], maps[2]), query, own, blocks)

    logits, scaled, edges = [own], [], []
    for z, key, value in blocks:
        q = query.reshape(*z.shape[:2], 1, width) + z @ maps[0].T
        k = key.unsqueeze(1) + z @ maps[1].T
        logit = (q * k).unflatten(-1, (heads, -1)).sum(-1) / width**0.5
        logits.append(logit.transpose(2, 3).reshape(batch, n, heads, -1))
        scaled.append((value.unsqueeze(1) * (z @ maps[2].T)).reshape(batch, n, -1, width))
        edges.append(z.reshape(batch, n, -1, d))
    weights = torch.cat(logits, -1).softmax(-1)
    alpha = weights[..., own_logits:]
    out = torch.einsum("bnhs,bnshc->bnhc", alpha, torch.cat(scaled, 2).unflatten(-1, (heads, -1))).flatten(2)
    mean = torch.einsum("bnhs,bnsd->bnhd", alpha, torch.cat(edges, 2))
    inputs = [*maps, query, *([own] if own_logits else []), *(t for block in blocks for t in block)]
    assert_same(list(found), [out, mean, weights[..., :own_logits]], inputs)


@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("chunk", [1, 60, 1 << 20])
def test_edge_update(chunk: int, dropped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges_module, "CHUNK_ELEMENTS", chunk)
    batch, r, s, d, h = 3, 4, 5, 3, 6
    z, back = draw(batch, r, s, d, seed=0), draw(batch, s, r, d, seed=1)
    p, q = draw(batch, r, h, seed=2), draw(batch, s, h, seed=3)
    shapes = ((h, 2 * d), (d, h), (d,), (d,), (d,), (h, d), (d, h), (d,), (d,), (d,))
    maps = tuple(draw(*shape, seed=4 + k) for k, shape in enumerate(shapes))
    keep = (draw(*z.shape, seed=20) > 0, draw(*z.shape, seed=21) > 0) if dropped else (None, None)
    found = edge_update(z, back, p, q, maps, keep)

    first, second = (1.0 if mask is None else mask.double() for mask in keep)
    hidden = F.gelu(torch.cat([z, back.transpose(1, 2)], -1) @ maps[0].T + p.unsqueeze(2) + q.unsqueeze(1))
    y = F.layer_norm(z + first * F.linear(hidden, maps[1], maps[2]), (d,), maps[3], maps[4])
    right = F.layer_norm(y + second * F.linear(F.gelu(y @ maps[5].T), maps[6], maps[7]), (d,), maps[8], maps[9])
    assert_same([found], [right], [z, back, p, q, *maps])


@pytest.mark.parametrize("enabled", [True, False])
def test_products(enabled: bool) -> None:
    a, b, weight, bias = (draw(*shape, seed=k).detach() for k, shape in enumerate(((50, 6), (50, 9), (7, 6), (7,))))
    with torch.backends.mkldnn.flags(enabled=enabled):
        for found, right in (
            (_products.apply(a.float(), weight.float()), a @ weight.T),
            (_products.apply(a.float(), weight.float(), bias.float()), a @ weight.T + bias),
            (_products.correlate(a.float(), b.float()), a.T @ b),
        ):
            torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5)
    for dtype in (torch.bfloat16, torch.float64):
        assert _products.correlate(a.to(dtype), b.to(dtype)).dtype == max(
            dtype, torch.float32, key=lambda t: t.itemsize
        )
    assert _products.apply(a[:0].float(), weight.float()).shape == (0, 7)


# -- size, dropout, refusals ----------------------------------------------------------------------------------------------


def test_parameter_count_is_the_papers() -> None:
    """Of 376,586 parameters of the paper's classifier, 39,818 are embeddings and head."""
    encoder = create_encoder("ng-t")
    layers = torch.nn.ModuleList([encoder.layers, encoder.edge_mlps])
    assert sum(p.numel() for p in layers.parameters()) == 376_586 - 39_818


@pytest.mark.parametrize("attention", ATTENTION)
def test_dropout(attention: str) -> None:
    """Without it training mode changes nothing; with it every call differs, and on average little."""
    graph = random_graph(SIREN, 2)
    for dropout in (0.0, 0.1):
        encoder = encoder_for(SIREN, attention=attention, dropout=dropout, layers=2)
        still = torch.cat([t.flatten() for t in tensors(encoder(graph))]).detach()
        drawn = [torch.cat([t.flatten() for t in tensors(encoder.train()(graph))]).detach() for _ in range(60)]
        if not dropout:
            torch.testing.assert_close(drawn[0], still, rtol=1e-12, atol=1e-12)
            continue
        apart = (drawn[0] - still).square().mean()
        assert apart > 1e-3 and (drawn[0] - drawn[1]).square().mean() > 1e-3
        assert (torch.stack(drawn).mean(0) - still).square().mean() < apart / 4
        edges = tensors(encoder(graph))[len(SIREN.widths) :], tensors(encoder(graph))[len(SIREN.widths) :]
        assert all((a != b).any() for a, b in zip(*edges, strict=True))


@pytest.mark.parametrize("share", [0.2, 0.9, 1.0])
def test_masks(share: float) -> None:
    torch.manual_seed(0)
    steps = round(share * DROPOUT_STEPS)
    mask = _mask(torch.empty(101, 1001), steps)
    assert mask.shape == (101, 1001) and mask.dtype == torch.bool
    assert float(mask.double().mean()) == pytest.approx(1 - share, abs=5e-3 if share < 1 else 0)
    assert share == 1 or not torch.equal(mask, _mask(torch.empty(101, 1001), steps))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 0}, "widths, layers, heads and max_io must be positive"),
        ({"probes": -1}, "probes and fourier must not be negative"),
        ({"attention": "some"}, "attention must be 'blocks' or 'all', not 'some'"),
        ({"heads": 3}, "attention_width 128 is no multiple of its 3 heads"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_encoder("ng-t", **arguments)


def test_networks_that_do_not_fit_are_refused() -> None:
    encoder = create_encoder("ng-t", **SMALL).double()
    with pytest.raises(UserError, match="up to 16 inputs and outputs"):
        encoder(random_graph(Stack.mlp((2, 4, 17)), 1))
