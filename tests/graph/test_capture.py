"""Recording modules: the recorded graph computes what the module computes, and refusals are one clear line."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter

from neural_graphs.errors import UserError
from neural_graphs.graph._capture import Captured, capture
from neural_graphs.graph._flatten import NotFlat


def replay(captured: Captured, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Run the recorded graph on the captured state."""
    given = iter(inputs)
    values = []
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            kind, name = captured.sources[node.name]
            if kind == "input":
                values.append(next(given))
            else:
                values.append(captured.constants[node.name] if kind == "constant" else captured.state[name])
    with torch.no_grad():
        return Interpreter(GraphModule({}, captured.graph)).run(*values)


def operators(captured: Captured) -> list[str]:
    return [node.target._schema.name for node in captured.graph.nodes if hasattr(node.target, "_schema")]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layer = nn.Embedding(11, 12), nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Any]:
        with torch.enable_grad():
            hidden = self.layer(self.tokens(x))
        with torch.autocast("cpu", enabled=False):
            return {"logits": self.head(hidden) * self.scale, "cache": object(), "nested": (None, [hidden])}


class Writes(nn.Module):
    """In-place operators, on whole tensors and on slices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu_()
        z = torch.zeros_like(y)
        z[:, :2] = y[:, 2:]
        y += self.b(x)
        return y * z + y


class Experts(nn.Module):
    """Control flow that depends on values."""

    def __init__(self, experts: int = 2) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(5, experts), nn.ModuleList(nn.Linear(5, 3) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1)
        y = x.new_zeros(x.shape[0], 3)
        for index, expert in enumerate(self.experts):
            mask = chosen == index
            if mask.any():
                y[mask] = expert(x[mask])
        return y + torch.tensor([1.0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.LSTM(4, 5, num_layers=2), nn.Linear(5, 2)

    def forward(self, x: Tensor, *, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        return self.out(self.cells(x)[0]) * scale


class Lambda(nn.Module):
    """One linear layer and any function of it and the input."""

    def __init__(self, function: Any, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.function = layer or nn.Linear(3, 3), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer, x)


def conv_net() -> nn.Module:
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4 * 36, 2))


CASES: dict[str, tuple[Any, tuple[Tensor, ...], str]] = {
    "convolutions": (conv_net, (torch.randn(2, 3, 8, 8),), "export"),
    "attention": (Attention, (torch.randint(0, 11, (2, 6)),), "export"),
    "writes": (Writes, (torch.randn(2, 3),), "export"),
    "recurrent": (Recurrent, (torch.randn(6, 2, 4),), "export"),
    "experts": (Experts, (torch.randn(4, 5),), "make_fx"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_graph_computes_what_the_module_computes(name: str) -> None:
    torch.manual_seed(0)
    build, inputs, route = CASES[name]
    module = build().train()
    captured = capture(module, inputs)
    assert captured.route == route
    assert all(child.training for child in module.modules())
    expected = module.eval()(*inputs)
    found = replay(captured, *inputs)
    first = expected["logits"] if isinstance(expected, dict) else expected
    torch.testing.assert_close(found[0], first, rtol=1e-5, atol=1e-6)
    assert {node.op for node in captured.graph.nodes} == {"placeholder", "call_function", "output"}
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            kind, full = captured.sources[node.name]
            assert kind == "input" or (full in captured.state) == (kind != "constant")
            if kind in ("parameter", "buffer"):
                assert node.meta["val"].shape == captured.state[full].shape
        elif node.op == "call_function":
            assert node.users or node.target is torch.ops.aten.item.default
            assert isinstance(node.meta["val"], (Tensor, tuple, list, int, float, bool))
            if route == "export":
                assert not getattr(node.target, "_schema", None) or not node.target._schema.is_mutable


def test_state_is_the_modules_own_memory_in_order() -> None:
    module = Attention()
    captured = capture(module, torch.randint(0, 11, (2, 6)))
    own = module.state_dict()
    assert list(captured.state) == list(own)
    assert all(value.data_ptr() == own[name].data_ptr() for name, value in captured.state.items())
    assert captured.tied == {"head.weight": "tokens.weight"}
    assert [captured.sources[name] for name in captured.constants] == [("constant", "scale")]
    names = [name for _, name in captured.sources.values()]
    assert "head.weight" not in names and names.count("tokens.weight") == 1


def test_high_level_operators_survive_and_copies_vanish() -> None:
    found = operators(capture(Attention(), torch.randint(0, 11, (2, 6))))
    for name in ("aten::embedding", "aten::layer_norm", "aten::scaled_dot_product_attention", "aten::linear"):
        assert name in found
    assert not {"aten::dropout", "aten::contiguous", "aten::clone", "aten::view"} & set(found)
    assert "aten::lstm" in operators(capture(Recurrent(), torch.randn(6, 2, 4)))


def test_a_shared_module_and_memory_under_two_names_are_tied() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight.data = module[0].weight.data
    captured = capture(module, torch.randn(2, 3))
    assert captured.tied == {"1.weight": "0.weight"}
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    module.append(module[0])
    captured = capture(module, torch.randn(2, 3))
    assert captured.tied == {"2.weight": "0.weight", "2.bias": "0.bias"}
    assert [name for kind, name in captured.sources.values() if kind == "parameter"] == ["0.weight", "0.bias"]


def test_the_meta_device_gives_the_same_graph() -> None:
    def signature(captured: Captured) -> list[Any]:
        return [
            (str(n.target), n.meta["val"].shape if isinstance(n.meta.get("val"), Tensor) else 0)
            for n in captured.graph.nodes
        ]

    for build, inputs, _ in (CASES["convolutions"], CASES["attention"], CASES["writes"]):
        with torch.device("meta"):
            empty = build()
        if isinstance(empty, Attention):
            empty.head.weight = empty.tokens.weight
        captured = capture(empty, inputs)
        assert signature(captured) == signature(capture(build(), inputs))
        assert all(value.device.type == "meta" for value in captured.state.values())


def test_a_module_made_of_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        module = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    assert operators(capture(module, torch.randn(2, 3))) == ["aten::linear", "aten::relu"]


def test_keyword_arguments_and_arguments_that_are_no_tensors() -> None:
    captured = capture(Recurrent(), {"x": torch.randn(6, 2, 4), "scale": 3.0, "mask": None})
    assert [source for source in captured.sources.values() if source[0] == "input"] == [("input", "x")]
    mul = next(node for node in captured.graph.nodes if node.target is torch.ops.aten.mul.Tensor)
    assert mul.args[1] == 3.0


def test_what_a_path_was_decided_on_stays_in_the_graph() -> None:
    captured = capture(Experts(), torch.randn(4, 5))
    assert "aten::item" in operators(captured)
    assert {"experts.0.weight", "experts.1.weight"} <= set(captured.state)


def test_concatenation_with_an_empty_cache_vanishes() -> None:
    module = Lambda(lambda layer, x: torch.cat([torch.tensor([]), layer(x)], dim=-2))
    captured = capture(module, torch.randn(2, 3))
    assert operators(captured) == ["aten::linear"] and not captured.constants


def test_nothing_is_said_on_the_way(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture(Experts(), torch.randn(4, 5))
        capture(Recurrent(), torch.randn(6, 2, 4))
    assert capfd.readouterr() == ("", "")


class WithParameter(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.layer, self.extra = nn.Linear(3, 3), nn.Parameter(value, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def branch(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda v: layer(v), lambda v: v, (x,))


def partial_write(layer: nn.Module, x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 6)
    if x.sum() > -1e9:
        y[:, :3] = layer(x)
    return y


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "shape": (
        nn.Linear(3, 4),
        torch.randn(2, 5),
        r"example input \(float32\[2, 5\]\) does not fit Linear: .*2x5 and 3x4",
    ),
    "number": (nn.Linear(3, 4), (torch.randn(2, 3), torch.randn(2)), r"does not fit Linear: .*2 positional"),
    "name": (nn.Linear(3, 4), {"x": torch.randn(2, 3)}, r"\(x=float32\[2, 3\]\) does not fit .*keyword argument 'x'"),
    "integers": (nn.Linear(3, 4), torch.ones(2, 3, dtype=torch.long), r"\(int64\[2, 3\]\) does not fit .*dtype"),
    "half": (nn.Linear(3, 4).half(), torch.randn(2, 3), r"does not fit .*dtype"),
    "float tokens": (nn.Embedding(5, 3), torch.zeros(2, 3), r"does not fit Embedding"),
    "no tensor": (nn.Linear(3, 4), "x", r"\(str\) does not fit Linear"),
    "no parameters": (nn.ReLU(), torch.randn(2), "ReLU has no parameters"),
    "complex": (
        WithParameter(torch.randn(3, dtype=torch.cfloat)),
        torch.randn(2, 3),
        "parameter extra is torch.complex64",
    ),
    "integer weight": (
        WithParameter(torch.ones(3, dtype=torch.int)),
        torch.randn(2, 3),
        "parameter extra is torch.int32",
    ),
    "sparse": (WithParameter(torch.eye(3).to_sparse()), torch.randn(2, 3), "parameter extra is .*sparse"),
    "lazy": (nn.LazyLinear(3), torch.randn(2, 3), "weight has no shape yet"),
    "no output": (Lambda(lambda layer, x: "text"), torch.randn(2, 3), "Lambda returns no tensor"),
    "constant": (Lambda(lambda layer, x: x + 1), torch.randn(2, 3), "does not depend on its parameters"),
    "python": (
        Lambda(lambda layer, x: layer(torch.tensor(layer(x).tolist()))),
        torch.randn(2, 3),
        "cannot be recorded .*takes a tensor's values to Python",
    ),
    "partial write": (Lambda(partial_write), torch.randn(2, 3), "cannot be recorded .*writes into a part of a tensor"),
    "cond": (Lambda(branch), torch.randn(2, 3), "cannot be recorded"),
    "values on meta": (Experts().to("meta"), torch.randn(4, 5), "cannot be recorded .*give real weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line(name: str) -> None:
    module, example, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as error:
        capture(module, example)
    assert "\n" not in str(error.value)


def test_integer_buffers_are_fine() -> None:
    captured = capture(nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)), torch.randn(2, 2, 5))
    assert captured.state["1.num_batches_tracked"].dtype == torch.long


def test_views_read_after_a_write_are_refused() -> None:
    from neural_graphs.graph._flatten import flatten

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    part = graph.call_function(torch.ops.aten.select.int, (x, 0, 0))
    graph.call_function(torch.ops.aten.add_.Tensor, (x, 1))
    graph.output((part,))
    with pytest.raises(NotFlat, match="part of a tensor"):
        flatten(GraphModule({}, graph), {"x": ("input", "x")}, {}, None)


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "t5", "whisper", "mixtral"])
def test_language_models_from_their_configs(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ids = torch.randint(3, 50, (2, 8))
    small = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    wide = {**small, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    whisper = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
    whisper |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "num_mel_bins": 8}
    whisper |= {"max_source_positions": 20, "max_target_positions": 16, "decoder_start_token_id": 1}
    models: dict[str, Any] = {
        "gpt2": lambda t: t.GPT2LMHeadModel(t.GPT2Config(**small, n_layer=2, n_embd=32, n_head=4, n_positions=16)),
        "bert": lambda t: t.BertModel(t.BertConfig(**wide, max_position_embeddings=16)),
        "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**wide, num_key_value_heads=2)),
        "t5": lambda t: t.T5ForConditionalGeneration(
            t.T5Config(**small, d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=40)
        ),
        "whisper": lambda t: t.WhisperForConditionalGeneration(t.WhisperConfig(**small, **whisper)),
        "mixtral": lambda t: t.MixtralForCausalLM(t.MixtralConfig(**wide, num_key_value_heads=2, num_local_experts=4)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = models[name](transformers).eval()
        example = {"input_ids": ids}
        if name == "t5":
            example["decoder_input_ids"] = ids
        elif name == "whisper":
            example = {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": ids}
        captured = capture(module, example)
        with torch.no_grad():
            expected = module(**example)[0]
    torch.testing.assert_close(replay(captured, *example.values())[0], expected, rtol=1e-4, atol=1e-5)
    assert captured.route == "export"
    assert list(captured.state) == list(module.state_dict())
