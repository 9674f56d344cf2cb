"""Modules with their checkpoints, Hugging Face folders, example inputs: what is read, and what is refused in one line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from neural_graphs._inputs import InputSpec, parse_inputs
from neural_graphs.errors import UserError
from neural_graphs.explore import load_model
from neural_graphs.explore._example_input import make_inputs

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.table = nn.Embedding(9, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids, gate=None):
        x = self.norm(self.table(ids).mean(1))
        return self.head(x if gate is None else x * gate)

    @classmethod
    def wide(cls):
        return cls(12)

net = Net()
number = 3
def broken(): raise ValueError("no such\\nwidth")
def text(): return "no module"
def leaves(): raise SystemExit("bye")
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").write_text(SOURCE)
    before = list(sys.path)
    yield
    assert sys.path == before
    sys.modules.pop("my_nets", None)


def net(width: int = 6) -> nn.Module:
    return load_model(model="my_nets:Net", inputs="ids:4", model_args={"width": width}).module


# -- example inputs -------------------------------------------------------------------------------------------------


def test_inputs_are_parsed() -> None:
    assert parse_inputs("3x224x224") == (InputSpec((3, 224, 224)),)
    assert parse_inputs("ids:16, 4") == (InputSpec((16,), None, True), InputSpec((4,)))
    assert parse_inputs("a=ids:2x3:50,b=7") == (InputSpec((2, 3), "a", True, 50), InputSpec((7,), "b"))


@pytest.mark.parametrize(
    "text", ["", "3x", "x3", "0", "3x0", "-1", "3.5", "ids:", "ids:4:0", "3:7", "a=", "a=3,4", "a=3,a=4"]
)
def test_inputs_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="input"):
        parse_inputs(text)


def test_inputs_are_made_for_the_module() -> None:
    module = nn.ModuleList([nn.Embedding(5, 2), nn.Embedding(3, 2)]).to(torch.float16)
    image, ids = make_inputs(parse_inputs("3x4,ids:100"), module)
    assert (image.shape, image.dtype) == ((2, 3, 4), torch.float16)
    assert (ids.shape, ids.dtype, ids.unique().tolist()) == ((2, 100), torch.int64, [0, 1, 2])
    assert make_inputs(parse_inputs("ids:100:9"), module).max() == 8
    assert make_inputs(parse_inputs("a=2,b=ids:3"), module).keys() == {"a", "b"}
    assert torch.equal(make_inputs(parse_inputs("5"), module, 4), make_inputs(parse_inputs("5"), module, 4))
    with pytest.raises(UserError, match="no nn.Embedding"):
        make_inputs(parse_inputs("ids:4"), nn.Linear(2, 2))


# -- the module -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["my_nets:Net", "my_nets:net", "my_nets:Net.wide", "my_nets.py:Net", "./my_nets.py:Net"]
)
def test_models_by_name(name: str) -> None:
    loaded = load_model(model=name, inputs="ids:4")
    assert loaded.module(loaded.inputs).shape == (2, 9)
    assert not loaded.module.training
    assert loaded.facts["source"] == "module"
    assert loaded.facts["model"] == "Net"
    assert loaded.facts["lossy"] is None
    json.dumps(loaded.facts)


def test_models_as_objects() -> None:
    linear = nn.Linear(3, 2)
    assert load_model(model=linear, inputs="3").module is linear
    example = torch.ones(4, 3)
    loaded = load_model(model=lambda width: nn.Linear(3, width), inputs=example, model_args='{"width": 5}')
    assert loaded.inputs is example
    assert loaded.module(example).shape == (4, 5)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (load_model(model="my_nets:Net", inputs="ids:4", seed=s).module for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


WRONG_MODELS = [
    ("my_nets", "package.module:factory"),
    (":Net", "package.module:factory"),
    ("absent:Net", "importing absent failed: ModuleNotFoundError"),
    ("absent.py:Net", "there is no file absent.py"),
    ("my_nets:Nett", "my_nets has no Nett; did you mean Net?"),
    ("my_nets:Net.narrow", "my_nets has no Net.narrow"),
    ("my_nets:number", "of type int, neither a module nor a function"),
    ("my_nets:text", "object of type str, not an nn.Module"),
    ("my_nets:broken", "calling it failed: ValueError: no such width"),
    ("my_nets:leaves", "calling it failed: SystemExit: bye"),
    ("syntax.py:Net", "importing syntax.py failed: SyntaxError"),
]


@pytest.mark.parametrize(("name", "words"), WRONG_MODELS)
def test_models_that_are_none(name: str, words: str) -> None:
    Path("syntax.py").write_text("def f(:\n")
    with pytest.raises(UserError) as error:
        load_model(model=name, inputs="ids:4")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "my_nets:Net"}, "give the shape of an input"),
        ({"model": "my_nets:Net", "inputs": "ids:4", "model_args": "{"}, "no JSON"),
        ({"model": "my_nets:Net", "inputs": "ids:4", "model_args": "[1]"}, "no JSON object"),
        (
            {"model": "my_nets:Net", "inputs": "ids:4", "model_args": {"depth": 1}},
            "unexpected keyword argument 'depth'",
        ),
        ({"model": "my_nets:net", "inputs": "ids:4", "model_args": {"width": 1}}, "takes no arguments"),
        ({"checkpoint": "x.pt", "model_args": {"width": 1}}, "need a model"),
        ({"checkpoint": "x.pt"}, "does not say which network it is"),
        ({}, "give a checkpoint or a model"),
        ({"checkpoint": "x.pt", "model": "my_nets:Net", "inputs": "ids:4"}, "there is no file x.pt"),
        ({"checkpoint": "x.onnx", "model": "my_nets:Net", "inputs": "ids:4"}, "read it without a model"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_model(**arguments)


# -- weights into a module ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_loaded_exactly(dtype: torch.dtype, suffix: str) -> None:
    state = {name: value.clone() for name, value in net().to(dtype).state_dict().items()}
    save_file(state, "n.safetensors") if suffix == ".safetensors" else torch.save({"state_dict": state}, "n.pt")
    loaded = load_model(f"n{suffix}", "my_nets:Net", "ids:4")
    found = loaded.module.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in state.items())
    assert loaded.module.head.weight is loaded.module.table.weight


def test_weights_of_two_precisions_take_the_wider() -> None:
    state = net().state_dict()
    torch.save({**state, "norm.weight": torch.rand(6, dtype=torch.float64)}, "n.pt")
    found = load_model("n.pt", "my_nets:Net", "ids:4").module.state_dict()
    assert torch.equal(found["norm.weight"], torch.load("n.pt", weights_only=True)["norm.weight"])
    assert {value.dtype for value in found.values() if value.is_floating_point()} == {torch.float64}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_dropped(prefix: str) -> None:
    torch.save({prefix + name: value for name, value in net().state_dict().items()}, "n.pt")
    assert load_model("n.pt", "my_nets:Net", "ids:4").module.head.weight.shape == (9, 6)


def test_a_module_whose_own_names_start_with_the_prefix() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 3)})
    torch.save({name: value + 1 for name, value in model.state_dict().items()}, "n.pt")
    load_model("n.pt", model, torch.ones(1, 2))
    assert torch.equal(model["module"].weight, torch.load("n.pt", weights_only=True)["module.weight"])


def test_one_name_of_tied_weights_suffices() -> None:
    state = {name: value for name, value in net().state_dict().items() if name != "head.weight"}
    save_file(state, "n.safetensors")
    loaded = load_model("n.safetensors", "my_nets:Net", "ids:4")
    assert torch.equal(loaded.module.head.weight, state["table.weight"])


def _changed(**changes: Any) -> dict[str, Any]:
    state = {name: value.clone() for name, value in net().state_dict().items()}
    state |= {name.replace("__", "."): change(state.get(name.replace("__", "."))) for name, change in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


WRONG_STATES: list[tuple[dict[str, Callable[[Any], Any]], str]] = [
    ({"norm__bias": lambda _: None}, "lacks the tensor norm.bias of the module"),
    ({"norm__bias": lambda _: None, "norm__weight": lambda _: None}, "norm.weight (and 1 more)"),
    ({"tail__weight": lambda _: torch.ones(2)}, "has no tensor tail.weight"),
    ({"norm__bias": lambda v: v[:-1]}, "norm.bias has shape 5 in the file, but 6 in the module"),
    ({"norm__bias": lambda v: v[None]}, "norm.bias has shape 1x6 in the file, but 6 in the module"),
    ({"norm__bias": lambda _: "text"}, "the entry norm.bias is of type str, not a tensor"),
    ({"norm__bias": lambda _: {"a": 1}}, "the entry norm.bias is of type dict, not a tensor"),
    ({"norm__bias": lambda v: v.to(torch.complex64)}, "norm.bias is complex"),
    ({"norm__bias": lambda v: v.to(torch.int32)}, "norm.bias holds int32 numbers"),
    ({"norm__num_batches_tracked": lambda v: v.float()}, "norm.num_batches_tracked holds float32 numbers"),
    ({"norm__bias": lambda v: v * float("nan")}, "NaN or infinite values in norm.bias"),
    ({"table__weight": lambda v: v * float("inf"), "head__weight": lambda v: v * float("inf")}, "table.weight"),
    ({"head__weight": lambda v: v + 1}, "weight is tied to another tensor of the module"),
    ({"norm__bias": lambda v: v.to_sparse()}, "norm.bias is a sparse"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), WRONG_STATES)
def test_states_that_do_not_fit(changes: dict[str, Callable[[Any], Any]], words: str) -> None:
    torch.save(_changed(**changes), "n.pt")
    with pytest.raises(UserError) as error:
        load_model("n.pt", "my_nets:Net", "ids:4")
    assert words in str(error.value)
    assert "n.pt" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Linear(2, 2, dtype=torch.complex64), "weight is complex64"),
        (nn.ParameterDict({"a": nn.Parameter(torch.ones(2, dtype=torch.int8), False)}), "a is int8"),
        (nn.ParameterDict({"a": nn.Parameter(torch.tensor([1.0, float("nan")]))}), "NaN or infinite values in a"),
    ],
)
def test_modules_that_are_not_read(module: nn.Module, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_model(model=module, inputs="2")


class Code:
    """Unpickling it would make a folder `executed`."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("executed",)


def test_pickles_are_not_executed() -> None:
    torch.save({"w": Code()}, "n.pt")
    with pytest.raises(UserError, match="refused"):
        load_model("n.pt", "my_nets:Net", "ids:4")
    torch.save(net(), "whole.pt")
    with pytest.raises(UserError, match="refused"):
        load_model("whole.pt", "my_nets:Net", "ids:4")
    assert not Path("executed").exists()


def test_truncated_files() -> None:
    save_file({"head.weight": torch.ones(9, 6)}, "n.safetensors")
    for size in (0, 4, 60, 200):
        Path("cut.safetensors").write_bytes(Path("n.safetensors").read_bytes()[:size])
        with pytest.raises(UserError, match="cut.safetensors: .*truncated"):
            load_model("cut.safetensors", "my_nets:Net", "ids:4")


# -- folders of shards --------------------------------------------------------------------------------------------------


def shards(folder: str = "net", **changes: str) -> dict[str, Tensor]:
    """A folder with the tensors of `net` in two shards; `changes` to the index."""
    state = net().state_dict()
    del state["head.weight"]
    Path(folder).mkdir()
    names = list(state)
    places = {name: f"model-{1 + (k > 2)}.safetensors" for k, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: state[name] for name in names if places[name] == file}, Path(folder, file))
    index = {"weight_map": places | {name.replace("__", "."): file for name, file in changes.items()}}
    Path(folder, "model.safetensors.index.json").write_text(json.dumps(index))
    return state


def test_shards_are_joined() -> None:
    state = shards()
    found = load_model("net", "my_nets:Net", "ids:4").module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    "place", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b.safetensors"]
)
def test_shards_outside_the_folder_are_refused(place: str) -> None:
    save_file({"norm.bias": torch.ones(6)}, "secret.safetensors")
    shards(norm__bias=place)
    with pytest.raises(UserError, match="no file of this folder, and was refused"):
        load_model("net", "my_nets:Net", "ids:4")


def test_shards_that_are_missing_or_incomplete() -> None:
    shards("a", norm__bias="model-3.safetensors")
    with pytest.raises(UserError, match="names the shard model-3.safetensors, which is missing"):
        load_model("a", "my_nets:Net", "ids:4")
    shards("b", tail__weight="model-1.safetensors")
    with pytest.raises(UserError, match="model-1.safetensors lacks the tensor tail.weight"):
        load_model("b", "my_nets:Net", "ids:4")
    shards("c")
    Path("c/model-1.safetensors").write_bytes(Path("c/model-1.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match="model-1.safetensors: .*truncated"):
        load_model("c", "my_nets:Net", "ids:4")


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_broken_indices(index: str) -> None:
    Path("net").mkdir()
    Path("net/model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="index.json"):
        load_model("net", "my_nets:Net", "ids:4")


def test_folders_without_weights() -> None:
    Path("net").mkdir()
    with pytest.raises(UserError, match="net holds no weights"):
        load_model("net", "my_nets:Net", "ids:4")
    with pytest.raises(UserError, match="net has no config.json"):
        load_model("net")


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformers", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    shards()
    Path("net/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"pip install 'neural-graphs\[hub\]'"):
        load_model("net")
    Path("net.onnx").touch()
    with pytest.raises(UserError, match=r"pip install 'neural-graphs\[onnx\]'"):
        load_model("net.onnx")
