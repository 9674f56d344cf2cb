"""Neural graphs of captured modules: exact, by reference, equivariant, and structured as people expect."""

from __future__ import annotations

import warnings
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_graphs.bench._trace_nets import SMALL
from neural_graphs.errors import UserError
from neural_graphs.graph import Activation, Axis, Block, NeuralGraph, NodeSet, PermutationSpec, Stack, spec_of_stack
from neural_graphs.graph._action import axis_groups, sources
from neural_graphs.graph._build import Response, build
from neural_graphs.graph._capture import Captured, capture
from neural_graphs.graph._propagate import propagate
from neural_graphs.graph._trace import trace_module
from neural_graphs.testing._modules import random_module


def traced(module: nn.Module, example: Any) -> tuple[NeuralGraph, dict[int, Response], Captured]:
    captured = capture(module, example)
    return *build(captured, propagate(captured)), captured


def sets(graph: NeuralGraph) -> dict[str, NodeSet]:
    return {nodes.name: nodes for nodes in graph.spec.node_sets}


def ends(graph: NeuralGraph, kind: str) -> list[tuple[str, str, int]]:
    """``(source, target, groups)`` of all blocks of a kind, sorted."""
    names = [nodes.name for nodes in graph.spec.node_sets]
    return sorted((names[b.source], names[b.target], b.groups) for b in graph.spec.blocks if b.kind == kind)


def block(graph: NeuralGraph, parameter: str) -> Block:
    return next(b for b in graph.spec.blocks if b.parameter == parameter)


def same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


# -- all small networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_round_trip_references_and_places(name: str) -> None:
    module, example = SMALL[name]()
    graph, responses, captured = traced(module, example)
    state = module.state_dict()
    same_state(graph.to_state_dict(), state)
    floating = {n for n, value in captured.state.items() if value.is_floating_point() and n not in captured.tied}
    assert set(graph.spec.places) == floating
    memory = {value.untyped_storage().data_ptr() for value in state.values()}
    for b, edges in zip(graph.spec.blocks, graph.edges, strict=True):
        if b.parameter is not None and edges.numel() and _viewable(b):
            assert edges.untyped_storage().data_ptr() in memory, f"{b.parameter} was copied"
    roles = Counter(nodes.role for nodes in graph.spec.node_sets)
    assert roles["input"] and roles["output"]
    depths = [nodes.depth for nodes in graph.spec.node_sets]
    for b in graph.spec.blocks:
        if b.source != b.target and b.parameter is not None and b.kind != "recurrent":
            assert depths[b.target] > depths[b.source]
    nodes = {node.name: node for node in captured.graph.nodes}
    for number, response in responses.items():
        value = nodes[response.node].meta["val"]
        shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
        size = 1 if response.axis is None else shape[response.axis]
        count = size if response.positions is None else len(response.positions)
        assert count == graph.spec.node_sets[number].size


def _viewable(edge: Block) -> bool:
    """Whether what forms one axis of the edges lies side by side in the parameter."""
    if edge.layout is None:
        return True
    together = (edge.layout.target, edge.layout.source, edge.layout.rest)
    return not edge.layout.pick and all(list(t) == list(range(t[0], t[0] + len(t))) for t in together if t)


def movement(axis: Axis, over: dict[str, tuple[str, ...]], element: dict[str, Tensor]) -> Tensor:
    groups = axis_groups("", (axis,), over)
    index = sources(groups[0], element) if groups else None
    return torch.arange(axis.size) if index is None else index


def dense(edges: Tensor, target: int, source: int, groups: int) -> Tensor:
    """``[target, source, f]`` with NaN where there is no edge."""
    found = torch.full((target, source, max(edges.shape[-1], 1)), torch.nan, dtype=torch.float64)
    width = source // groups
    for o in range(target):
        g = o // (target // groups)
        found[o, g * width : (g + 1) * width] = edges[0, o].double() if edges.shape[-1] else 1.0
    return found


@pytest.mark.parametrize("name", SMALL)
def test_the_graph_of_the_permuted_network_is_the_permuted_graph(name: str) -> None:
    graph, _, _ = traced(*SMALL[name]())
    assert permutes(graph)


@pytest.mark.parametrize("seed", [3, 6, 28, 38, 62, 134, 289, 320, 379, 388, 401])
def test_graphs_of_random_modules(seed: int) -> None:
    """Parameters that are cut, stacked, transposed, shared and multiplied: still exact, and moved with the network."""
    module, example = random_module(seed)
    try:
        captured = capture(module, example)
    except UserError as refused:
        assert "does not depend on its parameters" in str(refused)
        return
    graph, _ = build(captured, propagate(captured))
    same_state(graph.to_state_dict(), module.state_dict())
    permutes(graph)


def permutes(graph: NeuralGraph) -> bool:
    """Checks that the graph of a permuted network is the permuted graph; returns whether anything moved."""
    spec, generator = graph.spec, torch.Generator().manual_seed(0)
    over = dict(spec.symmetries.over)
    state = {n: v for n, v in graph.to_state_dict(batched=True).items() if n not in spec.canonical}
    for n, value in state.items():  # every entry different: nothing is equal by chance
        if value.is_floating_point():
            state[n] = torch.rand(value.shape, generator=generator).to(value.dtype)
    element = spec.symmetries.sample(generator)
    before = NeuralGraph.pack(spec, state)
    after = NeuralGraph.pack(spec, spec.symmetries.apply(state, element, batched=True))
    moves = [movement(nodes.axis, over, element) for nodes in spec.node_sets]
    for nodes, a, b, move in zip(spec.node_sets, before.nodes, after.nodes, moves, strict=True):
        assert torch.equal(a[:, move], b), nodes.name
    for k, edge in enumerate(spec.blocks):
        sizes = spec.node_sets[edge.target].size, spec.node_sets[edge.source].size, edge.groups
        a, b = dense(before.edges[k], *sizes), dense(after.edges[k], *sizes)
        assert torch.equal(a[moves[edge.target]][:, moves[edge.source]].nan_to_num(-1), b.nan_to_num(-1)), edge
    return any(not torch.equal(move, torch.arange(move.numel())) for move in moves)


@pytest.mark.parametrize(
    "name", ["mlp", "resnet-batchnorm", "vit-heads-first", "lstm-2-layers", "moe-stacked", "gpt-tied"]
)
def test_an_edited_block_is_what_the_module_runs_with(name: str) -> None:
    module, example = SMALL[name]()
    graph, _, _ = traced(module, example)
    args = example if isinstance(example, tuple) else (example,)
    with torch.no_grad():
        before = module(*args).clone()
        number = next(k for k, b in enumerate(graph.spec.blocks) if b.kind in ("query", "recurrent", "conv", "linear"))
        edited = graph._with(
            graph.nodes,
            [graph.edges[k] * 1.5 if k == number else graph.edges[k] for k in graph._own_blocks],
        )
        state = edited.to_state_dict()
        name_of = graph.spec.blocks[number].parameter
        assert name_of is not None and not torch.equal(state[name_of], module.state_dict()[name_of])
        module.load_state_dict(state)
        after = module(*args)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, torch.func.functional_call(module, state, args))


def test_without_symmetries_the_structure_is_the_same() -> None:
    """Node sets and blocks do not depend on how large a group was found, but for how far axes move."""
    for name in ("vit-qkv", "unet", "gru-2-layers"):
        captured = capture(*SMALL[name]())
        still = tuple((n, tuple(Axis.fixed(k) for k in v.shape)) for n, v in captured.state.items())
        graph, _ = build(captured, SimpleNamespace(spec=PermutationSpec(still)))  # type: ignore[arg-type]
        full, _ = build(captured, propagate(captured))
        assert [(n.name, n.size, n.role) for n in graph.spec.node_sets] == [
            (n.name, n.size, n.role) for n in full.spec.node_sets
        ]
        assert graph.spec.blocks == full.spec.blocks


def test_a_module_on_the_meta_device() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    graph, _, _ = traced(module, torch.randn(1, 3, 8, 8))
    assert [nodes.size for nodes in graph.spec.node_sets] == [3, 4, 2]
    assert graph.edges[0].device.type == "meta" and graph.edges[1].shape == (1, 2, 4, 36)


# -- plain stacks -----------------------------------------------------------------------------------------------------------


STACKS = {
    "mlp": (Stack.mlp((5, 8, 7, 3), "tanh", prefix="{}"), torch.randn(4, 5)),
    "siren": (Stack.mlp((2, 8, 8, 1), "sine:30", prefix="net.{}"), torch.randn(4, 2)),
    "one": (Stack.mlp((3, 2), [], prefix="{}"), torch.randn(4, 3)),
}


def agree(graph: NeuralGraph, plain: NeuralGraph) -> None:
    for a, b in zip(graph.spec.node_sets, plain.spec.node_sets, strict=True):
        assert (a.name, a.size, a.role, a.depth, a.parameters) == (b.name, b.size, b.role, b.depth, b.parameters)
        assert str(a.activation) == str(b.activation)
        assert (a.symmetry is None) == (b.symmetry is None)
    assert graph.spec.blocks == plain.spec.blocks
    for x, y in zip((*graph.nodes, *graph.edges), (*plain.nodes, *plain.edges), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", STACKS)
def test_stacks_agree_tensor_by_tensor(name: str) -> None:
    stack, x = STACKS[name]
    module = stack.module()
    graph, _, _ = traced(module, x)
    state = {n: v.unsqueeze(0) for n, v in module.state_dict().items()}
    agree(graph, NeuralGraph.pack(spec_of_stack(stack), state, stack))


def test_convolutional_stacks_agree_tensor_by_tensor() -> None:
    from neural_graphs.graph._plain import stack_from_module

    module = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 9), nn.GELU(), nn.Linear(9, 3),
    )  # fmt: skip
    stack = stack_from_module(module)
    graph, _, _ = traced(module, torch.randn(2, 2, 8, 8))
    state = {n: v.detach().unsqueeze(0) for n, v in module.state_dict().items()}
    agree(graph, NeuralGraph.pack(spec_of_stack(stack), state, stack))


# -- structure --------------------------------------------------------------------------------------------------------------


def test_a_residual_stream_is_many_node_sets_of_one_class() -> None:
    graph, responses, _ = traced(*SMALL["resnet-batchnorm"]())
    found = sets(graph)
    assert list(found) == ["input", "stem", "conv1", "conv2", "shortcut", "down", "head"]
    kinds = [feature.kind for feature in found["stem"].features]
    assert kinds == ["scale", "shift", "running_mean", "running_var"]
    assert found["stem"].symmetry == found["conv2"].symmetry is not None
    assert found["stem"].symmetry != found["conv1"].symmetry
    assert ends(graph, "identity") == [("shortcut", "down", 12), ("stem", "conv2", 8)]
    assert [str(nodes.activation) for nodes in found.values()][1:4] == ["relu", "relu", "relu"]
    assert {n for n, _ in graph.spec.rest} == {
        f"{n}.num_batches_tracked" for n in ("stem_norm", "norm1", "norm2", "down_norm")
    }
    assert all(responses[k].axis == 1 for k in range(1, 6))


def test_attention_after_nino() -> None:
    for name in ("vit-qkv", "vit-heads-first", "vit-module"):
        graph, _, _ = traced(*SMALL[name]())
        (query, key, value) = (next(b for b in graph.spec.blocks if b.kind == k) for k in ("query", "key", "value"))
        assert query.target == key.target != value.target and query.source == key.source == value.source
        assert query.parameter == key.parameter == value.parameter
        qk, v = graph.spec.node_sets[query.target].name, graph.spec.node_sets[value.target].name
        assert ends(graph, "attention") == [(qk, v, 1)]
        assert ends(graph, "position")[0][1] == "patches"
        assert "token" in [feature.kind for feature in sets(graph)["patches"].features]
        weight = graph.to_state_dict()[query.parameter]
        read = graph.edges[graph.spec.blocks.index(key)][0, :, :, 0]
        rows = weight.reshape(3, 3, 4, 12)[:, 1].reshape(12, 12) if name == "vit-heads-first" else weight[12:24]
        assert torch.equal(read, rows)


def test_grouped_queries_have_node_sets_of_their_own() -> None:
    graph, _, _ = traced(*SMALL["llama-like"]())
    targets = {
        graph.spec.blocks[k].target for k, b in enumerate(graph.spec.blocks) if b.kind in ("query", "key", "value")
    }
    assert len(targets) == 3
    prefix = "attention.layer"
    assert (f"{prefix}.key", f"{prefix}.query", 2) in ends(graph, "attention")
    assert (f"{prefix}.value", f"{prefix}.out.weight.input", 2) in ends(graph, "attention")
    assert ("mlp.layer.gate", "mlp.layer.up", 10) in ends(graph, "identity")


def test_tied_and_shared_parameters_are_copies_of_one_block() -> None:
    graph, _, _ = traced(*SMALL["gpt-tied"]())
    first, second = (b for b in graph.spec.blocks if b.parameter == "tokens.weight")
    assert first.kind == "embedding" and first.copy_of is None
    assert second.copy_of == graph.spec.blocks.index(first)
    a, b = (graph.edges[graph.spec.blocks.index(x)] for x in (first, second))
    assert torch.equal(a.transpose(1, 2), b)
    assert dict(graph.spec.tied)
    shared, _, _ = traced(*SMALL["shared-layer"]())
    assert sets(shared)["layer#2"].features[0].shared and not sets(shared)["layer"].features[0].shared


def test_recurrent_layers_feed_themselves() -> None:
    graph, _, _ = traced(*SMALL["lstm-bidirectional"]())
    found = sets(graph)
    assert ends(graph, "recurrent") == [("layer.l0", "layer.l0", 1), ("layer.l0_reverse", "layer.l0_reverse", 1)]
    assert found["layer.l0"].columns == 8 and block(graph, "layer.weight_ih_l0").features == 4
    weight = graph.to_state_dict()["layer.weight_hh_l0"]
    edges = graph.edges[graph.spec.blocks.index(block(graph, "layer.weight_hh_l0"))]
    assert torch.equal(edges[0, 2, 3], weight.reshape(4, 7, 7)[:, 2, 3])
    assert found["out"].depth == 3


def test_convolutions_of_all_kinds() -> None:
    graph, _, _ = traced(*SMALL["grouped-conv"]())
    assert [b.groups for b in graph.spec.blocks] == [1, 8, 1, 2, 1]
    unet, _, _ = traced(*SMALL["unet"]())
    assert [(b.source, b.target) for b in unet.spec.blocks if b.parameter == "merge.weight"] == [(1, 5), (4, 5)]
    up = block(unet, "up.weight")
    weight = unet.to_state_dict()["up.weight"]
    assert torch.equal(unet.edges[unet.spec.blocks.index(up)][0], weight.permute(1, 0, 2, 3).reshape(6, 8, 4))
    assert up.kernel == (2, 2)


def test_gates_tokens_and_squeezes_are_joined() -> None:
    glu, _, _ = traced(*SMALL["glu"]())
    assert ends(glu, "identity") == [("0.1", "0.0", 8)]
    excite, _, _ = traced(*SMALL["squeeze-excite"]())
    assert ("stem", "excite", 8) in ends(excite, "identity")
    mixer, _, _ = traced(*SMALL["mixer"]())
    first = block(mixer, "tokens.0.weight")
    tokens = mixer.spec.node_sets[first.source]
    assert tokens.size == 4 and tokens.role == "hidden"
    assert ("enter", tokens.name, 1) in ends(mixer, "other")


def test_sine_frequencies_and_written_out_non_linearities() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sin(self.layers[0](x) * 15.0 / 3.0)
            x = self.layers[1](x)
            x = x * torch.sigmoid(x)
            x = self.layers[2](x)
            x = 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0))))
            x = F.hardswish(self.layers[3](x))
            return self.layers[5](F.leaky_relu(self.layers[4](x)))

    graph, responses, captured = traced(Net(), torch.randn(2, 4))
    kinds = [str(nodes.activation) for nodes in graph.spec.node_sets]
    assert kinds == ["none", "sine:5", "silu", "gelu", "other", "leaky_relu", "none"]
    names = {node.name: node for node in captured.graph.nodes}
    assert [names[responses[k].node].target._schema.name for k in (2, 3)] == ["aten::mul", "aten::mul"]
    with pytest.raises(Exception, match="run the module"):
        Activation("other")(torch.zeros(1))


# -- parameters in unusual places -------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Scalars, tables, partly used and unused parameters, buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 6), nn.Linear(6, 2)
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.single = nn.Parameter(torch.ones(1))
        self.table = nn.Parameter(torch.randn(9, 6))
        self.unused = nn.Parameter(torch.randn(2, 3, 4))
        self.scale = nn.Parameter(torch.randn(6))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("window", torch.hann_window(4))
        self.register_buffer("narrow", torch.ones(6, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.enter(x) * self.temperature + self.table[: x.shape[1]]
        return self.leave(torch.relu(hidden * self.scale) * self.single)


def test_every_floating_point_tensor_has_a_place() -> None:
    module = Odd()
    graph, _, _ = traced(module, torch.randn(2, 5, 3))
    same_state(graph.to_state_dict(), module.state_dict())
    assert {name for name, _ in graph.spec.rest} == {"steps"}
    assert len(graph.spec.places["table"]) == 1
    table = block(graph, "table")
    assert table.kind == "position" and graph.spec.node_sets[table.target].name == "enter"
    scale = next(f for f in sets(graph)["enter"].features if f.parameter == "scale")
    assert scale.kind == "scale"


def test_a_partly_used_weight_is_placed_whole() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.out = nn.Parameter(torch.randn(8, 5)), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(x @ self.weight[2:5].T))

    module = Net()
    graph, _, _ = traced(module, torch.randn(4, 5))
    same_state(graph.to_state_dict(), module.state_dict())
    kinds = Counter(b.kind for b in graph.spec.blocks if b.parameter == "weight")
    assert kinds == {"linear": 1, "other": 2}


def test_weights_computed_from_weights() -> None:
    from torch.nn.utils.parametrizations import weight_norm

    module = nn.Sequential(weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    graph, _, _ = traced(module, torch.randn(3, 4))
    same_state(graph.to_state_dict(), module.state_dict())
    assert block(graph, "0.parametrizations.weight.original1").kind == "linear"
    size = next(nodes for nodes in graph.spec.node_sets if "0.parametrizations.weight.original0" in nodes.parameters)
    assert size.size == 6 and size.depth == 1


def test_an_operator_without_a_rule_still_gives_an_exact_graph() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.middle, self.leave = nn.Linear(4, 6), nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(torch.linalg.solve(self.middle + 9 * torch.eye(6), self.enter(x).T).T)

    module = Net()
    graph, _, _ = traced(module, torch.randn(3, 4))
    same_state(graph.to_state_dict(), module.state_dict())
    middle = block(graph, "middle")
    assert middle.kind == "other"
    reached = {middle.target}
    for _ in graph.spec.blocks:
        reached |= {b.target for b in graph.spec.blocks if b.source in reached}
    assert any(graph.spec.node_sets[k].role == "output" for k in reached)


# -- models of the hub ------------------------------------------------------------------------------------------------------


def test_gpt2_and_resnet_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, n_positions=16, vocab_size=50)
        module = transformers.GPT2LMHeadModel(config).eval()
        graph, _, _ = traced(module, {"input_ids": torch.randint(0, 50, (2, 8))})
        resnet_config = transformers.ResNetConfig(
            layer_type="basic", embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], num_labels=5
        )
        resnet = transformers.ResNetForImageClassification(resnet_config).eval()
        pictures, _, _ = traced(resnet, torch.randn(1, 3, 32, 32))
    same_state(graph.to_state_dict(), module.state_dict())
    kinds = Counter(b.kind for b in graph.spec.blocks)
    assert kinds == {
        "embedding": 1, "position": 1, "query": 2, "key": 2, "value": 2, "attention": 2, "linear": 7, "identity": 5,
    }  # fmt: skip
    assert sets(graph)["transformer.h.0.mlp.c_fc"].activation == Activation("gelu")
    assert len({nodes.symmetry for nodes in graph.spec.node_sets if nodes.size == 32 and nodes.symmetry}) == 1
    same_state(pictures.to_state_dict(), resnet.state_dict())
    kinds = Counter(b.kind for b in pictures.spec.blocks)
    assert kinds == {"conv": 10, "identity": 4, "linear": 1}


class Flipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)).flip(-1))


def test_a_flip_is_not_read_as_if_neurons_stayed() -> None:
    """No block may join neuron i of the first layer to column i of the second: it is column 3 - i that reads it."""
    module = Flipped().eval()
    graph = trace_module(module, torch.rand(5, 3))
    names = [nodes.name for nodes in graph.spec.node_sets]
    block = next(block for block in graph.spec.blocks if block.parameter == "second.weight")
    assert block.source != names.index("first")
    assert torch.equal(graph.to_state_dict()["second.weight"], module.second.weight)
