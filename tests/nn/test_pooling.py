"""Pooling: each kind against a slow twin that reads one network at a time, neuron by neuron."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_graphs.errors import UserError
from neural_graphs.graph import Axis, GraphBatch, GraphSpec, NodeSet, PermutationSpec, Stack
from neural_graphs.nn import Encoding, GraphHead, create_encoder
from neural_graphs.nn._pooling import AttentionBlock, pooled_sets
from neural_graphs.tasks import Classifier
from neural_graphs.testing import assert_invariant, random_graph

POOLINGS = ["concat", "mean", "max", "attention", "set-transformer"]
OVER = ["output", "last", "all"]
PAIRS = [(pooling, over) for pooling in POOLINGS for over in OVER if pooling != "concat" or over == "output"]
STACKS = (
    Stack.mlp((2, 6, 5, 2), "sine:30", shift=0.5),
    Stack.mlp((2, 4, 2), "relu"),
    Stack.mlp((2, 3, 5, 4, 2), ["tanh", "relu", "gelu"]),
)

every_pair = pytest.mark.parametrize(("pooling", "over"), PAIRS)


@pytest.fixture
def encoder() -> Any:
    torch.manual_seed(0)
    return create_encoder("ng-gnn", width=8, layers=2, fourier=4).double().eval()


def head_of(pooling: str, over: str, outputs: int = 2) -> GraphHead:
    torch.manual_seed(1)
    return GraphHead(8, outputs, 3, pooling=pooling, over=over, heads=2).double()


def mixture(count: int = 7) -> list[Any]:
    return [random_graph(STACKS[k % 3], 1, seed=k) for k in range(count)]


# -- the slow twin: one network, rows are neurons --------------------------------------------------------------------------


def rows_of(nodes: tuple[Tensor, ...], over: str) -> list[Tensor]:
    """The embeddings ``[F]`` of one plain network's neurons; its node sets stand in order of depth."""
    chosen = {"output": nodes[-1:], "last": nodes[-2:-1], "all": nodes}[over]
    return [row for x in chosen for row in x[0]]


def attend(block: AttentionBlock, x: list[Tensor], y: list[Tensor]) -> list[Tensor]:
    """``block`` on lists of vectors, as written in the paper."""
    size = len(x[0]) // block.heads
    seen = [block.norm_attention(other) for other in y]
    out = []
    for row in x:
        query, found = block.query(block.norm_attention(row)), []
        for h in range(block.heads):
            part = slice(h * size, (h + 1) * size)
            scores = [query[part] @ block.key(other)[part] / math.sqrt(size) for other in seen]
            total = sum(math.exp(s) for s in scores)
            found.append(sum(math.exp(s) / total * block.value(o)[part] for s, o in zip(scores, seen, strict=True)))
        hidden = row + block.out(torch.cat(found))
        out.append(hidden + block.feed(block.norm_feed(hidden)))
    return out


def pool(head: GraphHead, rows: list[Tensor]) -> Tensor:
    if head.pooling == "concat":
        return torch.cat(rows)
    if head.pooling == "mean":
        return torch.stack(rows).sum(0) / len(rows)
    if head.pooling == "max":
        return torch.stack([max(row[f] for row in rows) for f in range(len(rows[0]))])
    module: Any = head.pool
    if head.pooling == "attention":
        scores = [module.query(torch.tanh(module.value(r)) * torch.sigmoid(module.gate(r))).exp() for r in rows]
        return sum((s / sum(scores) * row for s, row in zip(scores, rows, strict=True)), torch.zeros(()))
    for block in module.blocks:
        rows = attend(block, rows, rows)
    (pooled,) = attend(module.pool, [module.seed[0, 0]], rows)
    return pooled


@every_pair
@torch.no_grad()
def test_mixed_batches_equal_the_slow_twin(pooling: str, over: str, encoder: Any) -> None:
    """Neither batch mates nor their architectures change what a network gives."""
    head, networks = head_of(pooling, over), mixture()
    found = head(encoder(GraphBatch.of(networks), reads=head.reads))
    twin = [head.mlp(pool(head, rows_of(encoder(network).nodes[0], over))) for network in networks]
    torch.testing.assert_close(found, torch.stack(twin), rtol=1e-10, atol=1e-12)


# -- what holds for each ---------------------------------------------------------------------------------------------------


@every_pair
def test_invariance(pooling: str, over: str, encoder: Any) -> None:
    head = head_of(pooling, over)
    graph = random_graph(STACKS[0], 4)
    assert assert_invariant(lambda batch: head(encoder(batch, reads=head.reads)), graph) < 1e-10


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_reach_every_parameter(pooling: str, encoder: Any) -> None:
    head = head_of(pooling, "output" if pooling == "concat" else "all")
    head(encoder(mixture(), reads=head.reads)).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-12, name


@every_pair
def test_empty_batches(pooling: str, over: str, encoder: Any) -> None:
    head, graph = head_of(pooling, over), random_graph(STACKS[0], 2)
    for empty in (GraphBatch.of([]), graph[:0]):
        found = head(encoder(empty, reads=head.reads))
        assert found.shape == (0, 3) and found.dtype == torch.float64
    both = head(encoder([graph[:0], graph], reads=head.reads))
    torch.testing.assert_close(both, head(encoder(graph, reads=head.reads)), rtol=1e-12, atol=1e-12)


def test_the_default_is_what_it_was() -> None:
    """Names, shapes and initial values of saved models: the MLP alone."""
    torch.manual_seed(3)
    head = GraphHead(6, 2, 4)
    torch.manual_seed(3)
    mlp = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    assert list(head.state_dict()) == [f"mlp.{name}" for name in mlp.state_dict()]
    assert all(torch.equal(head.state_dict()[f"mlp.{name}"], value) for name, value in mlp.state_dict().items())
    assert head.reads == "outputs"


def test_any_number_of_outputs_can_be_pooled(encoder: Any) -> None:
    networks = [random_graph(Stack.mlp((2, 4, outputs)), 1) for outputs in (1, 3)]
    head = head_of("mean", "output")
    assert head(encoder(networks, reads="outputs")).shape == (2, 3)
    with pytest.raises(UserError, match="reads networks of 2 outputs, this one has 1"):
        head_of("concat", "output")(encoder(networks))


def test_last_is_every_hidden_set_of_the_greatest_depth() -> None:
    sets: list[tuple[str, Any, int]] = [
        ("x", "input", 0),
        ("a", "hidden", 1),
        ("b", "hidden", 2),
        ("c", "hidden", 2),
        ("y", "output", 3),
    ]
    node_sets = tuple(NodeSet(name, 2, role, depth, axis=Axis.fixed(2)) for name, role, depth in sets)
    spec = GraphSpec(node_sets, (), PermutationSpec(()))
    assert [pooled_sets(spec, over) for over in OVER] == [[4], [2, 3], [0, 1, 2, 3, 4]]


# -- rescaled embeddings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["last", "all"])
@pytest.mark.parametrize("pooling", POOLINGS[1:])
@pytest.mark.parametrize("activation", ["relu", "tanh", "sine:30"])
def test_rescaled_neurons_are_pooled_in_canonical_form(activation: str, pooling: str, over: str) -> None:
    batch = GraphBatch.of(random_graph(Stack.mlp((2, 6, 5, 2), activation), 3))
    generator = torch.Generator().manual_seed(0)
    nodes = [torch.randn(3, n, 8, generator=generator, dtype=torch.float64) for n in (2, 6, 5, 2)]
    factors = [torch.randn(3, n, 1, generator=generator, dtype=torch.float64).mul(3).exp() for n in (6, 5)]
    if activation != "relu":
        factors = [1 - 2 * (factor > 1).double() for factor in factors]
    moved = [nodes[0], nodes[1] * factors[0], nodes[2] * factors[1], nodes[3]]
    head = head_of(pooling, over)

    def value(given: list[Tensor], rescaled: bool) -> Tensor:
        return head(Encoding(batch, (tuple(given),), rescaled=rescaled))

    torch.testing.assert_close(value(moved, True), value(nodes, True), rtol=1e-10, atol=1e-12)
    assert (value(moved, False) - value(nodes, False)).abs().max() > 1e-6
    if over == "all":  # outputs have no factor, so nothing of them is taken away
        louder = [*nodes[:3], 2 * nodes[3]]
        assert (value(louder, True) - value(nodes, True)).abs().max() > 1e-6


@pytest.mark.parametrize("over", ["last", "all"])
@pytest.mark.parametrize("pooling", POOLINGS[1:])
def test_pooled_rescaled_encodings_are_invariant(pooling: str, over: str) -> None:
    torch.manual_seed(0)
    encoder = create_encoder("scale-gmn", width=8, layers=2, edge_width=4).double().eval()
    head = head_of(pooling, over)
    graph = random_graph(Stack.mlp((2, 5, 4, 6, 2), ["relu", "tanh", "sine:30"]), 3)
    kinds = ("permutation", "scale", "sign", "phase")
    model = lambda batch: head(encoder(batch, reads=head.reads))  # noqa: E731
    assert assert_invariant(model, graph, samples=2, kinds=kinds, spread=1e3) < 1e-10


# -- one vector per network ------------------------------------------------------------------------------------------------


def test_vectors_feed_the_same_mlp() -> None:
    """Also of networks of several outputs, of which a vector knows nothing."""
    stack = Stack.mlp((2, 4, 3))
    graph = random_graph(stack, 4, torch.float32)
    model = Classifier(create_encoder("mlp", parameters=stack.num_parameters, width=8), 5, outputs=3).eval()
    torch.testing.assert_close(model(graph), model.head.mlp(model.encoder(graph).vector))
    model.check_readable(graph)
    with pytest.raises(UserError, match="of 3 outputs, this one has 2"):
        model.check_readable(random_graph(Stack.mlp((2, 5, 2)), 1))  # as many parameters
    with pytest.raises(UserError, match="one vector per network: make its head with outputs=1"):
        GraphHead(8, 3, 5)(model.encoder(graph))


def test_vectors_cannot_be_pooled() -> None:
    encoder = create_encoder("mlp", parameters=17, width=8)
    with pytest.raises(UserError, match="nothing to pool: leave out pooling=mean"):
        GraphHead(8, 1, 5, pooling="mean")(encoder(random_graph(Stack.mlp((2, 4, 1)), 2, torch.float32)))
    with pytest.raises(UserError, match="nothing to pool"):
        Classifier(encoder, 5, head={"pooling": "attention"})


# -- errors ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "sum"}, "unknown pooling 'sum': choose one of concat, mean, max, attention, set-transformer"),
        ({"pooling": "mean", "over": "hidden"}, "cannot pool over 'hidden': choose one of output, last, all"),
        ({"over": "all"}, "pooling=concat needs a fixed number of neurons.*over=all has not"),
        ({"over": "last"}, "pooling=concat needs a fixed number of neurons.*over=last has not"),
        ({"pooling": "set-transformer", "heads": 3}, "3 heads needs a width that they divide, not 8"),
        ({"pooling": "set-transformer", "blocks": -1}, "cannot have -1 self-attention blocks"),
        ({"hidden": -4}, "positive sizes, not 8, 1, 3 and -4"),
        ({"colour": 1}, "head: .*unexpected keyword argument 'colour'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Classifier(create_encoder("ng-gnn", width=8), 3, head=arguments)
    assert "\n" not in str(caught.value)


def test_networks_without_hidden_layer_have_no_last(encoder: Any) -> None:
    model = Classifier(encoder, 3, outputs=2, head={"pooling": "mean", "over": "last"})
    shallow = random_graph(Stack.mlp((2, 2)), 1)
    with pytest.raises(UserError, match="the last hidden layer, and this network has none: choose over=output or all"):
        model.check_readable(shallow)
    with pytest.raises(UserError, match="this network has none"):
        model.double()(shallow)


def test_what_was_not_asked_for_is_missed(encoder: Any) -> None:
    head = head_of("mean", "all")
    with pytest.raises(UserError, match=r"call it as encoder\(batch, reads=head.reads\)"):
        head(encoder(random_graph(STACKS[0], 1), reads="outputs"))
