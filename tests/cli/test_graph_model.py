"""`graph` and `check` on a user's own module, Hugging Face folders and ONNX files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from neural_graphs.cli import main

SOURCE = """
import torch
from torch import nn

def mlp(width=5):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))

class Residual(nn.Module):
    def __init__(self, depth=1):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(depth))
        self.head = nn.Linear(4, 2)

    def forward(self, image):
        x = torch.relu(self.norm(self.stem(image)))
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x.mean((2, 3)))

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.gate = nn.Linear(3, 6)

    def forward(self, ids, hint):
        return torch.tanh(self.mix(torch.tanh(self.table(ids).mean(1)) * self.gate(hint))).sum(-1)

class Odd(nn.Module):
    # One operator without a rule, and a decision on its data.
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        if x.sum() < 99:
            x = self.second(torch.cdist(x, self.second.weight))
        return x

class Wavering(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        raise RuntimeError("not today")
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_nets.py").write_text(SOURCE)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("cli_nets", None)


def parsed(command: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    assert main([*command, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def failure(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(command) == 2
    output = capsys.readouterr()
    (line,) = output.err.strip().splitlines()
    assert line.startswith("error: ")
    assert "unexpected" not in line
    assert output.out == ""
    return line


def module(name: str, **arguments: Any) -> nn.Module:
    from neural_graphs.explore import load_model

    shapes = {"Residual": "3x6x6", "mlp": "3"}
    return load_model(model=f"cli_nets.py:{name}", inputs=shapes[name], model_args=arguments).module


RESIDUAL = ["--model", "cli_nets:Residual", "--input", "3x6x6"]


def test_graph_of_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", *RESIDUAL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cli_nets:Residual: Residual, ")
    assert lines[0].endswith(f"{3 * 4 * 9 + 4 + 8 + 4 * 4 * 9 + 4 + 8 + 2} parameters")
    assert lines[1].startswith("note: no checkpoint")
    assert any(line.startswith("symmetries: S4, 10^1 orders") for line in lines)
    for name in ("stem.weight", "layers.0.weight", "head.weight"):
        assert any(name in line for line in lines)

    found = parsed(["graph", "-", *RESIDUAL], capsys)
    assert found["source"] == "module"
    assert found["lossy"] is None
    assert (found["route"], found["frozen"]) == ("export", {})
    assert list(found["symmetries"]["classes"].values()) == [4]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_checkpoint_of_a_module(suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = module("mlp", width=7).state_dict()
    state["0.weight"] = torch.full((7, 3), 2.0)
    save_file(state, "n.safetensors") if suffix == ".safetensors" else torch.save({"state_dict": state}, "n.pt")
    command = [f"n{suffix}", "--model", "cli_nets.py:mlp", "--model-args", '{"width": 7}', "--input", "3"]
    found = parsed(["graph", *command], capsys)
    assert found["file"] == f"n{suffix}"
    assert [block["mean"] for block in found["blocks"] if block["parameter"] == "0.weight"] == [2.0]


@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-12), ("float32", 1e-5)])
def test_check_of_a_module(dtype: str, most: float, capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed(["check", *RESIDUAL, "--dtype", dtype, "--samples", "2", "--seed", "3"], capsys)
    assert found["passed"] and found["dtype"] == dtype and found["samples"] == 2
    assert found["error"] < most < 1e-3 < found["control"]
    assert main(["check", *RESIDUAL]) == 0
    assert "S4 holds" in capsys.readouterr().out


def test_what_was_not_understood_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "--model", "cli_nets:Odd", "--input", "3"]) == 0
    output = capsys.readouterr().out
    assert "note: the network decides on values of its data" in output
    assert "operators without a rule, whose axes stay fixed: cdist (1)" in output
    found = parsed(["graph", "--model", "cli_nets:Odd", "--input", "3"], capsys)
    assert (found["route"], found["frozen"]) == ("make_fx", {"cdist": 1})


def test_several_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("ids:5:9,3", "hint=3,ids=ids:5"):
        assert parsed(["check", "--model", "cli_nets:Tokens", "--input", text], capsys)["passed"]


def test_tables_of_a_deep_network_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    deep = ["graph", *RESIDUAL, "--model-args", '{"depth": 9}']
    assert main([*deep, "--rows", "3"]) == 0
    output = capsys.readouterr().out
    assert output.count("more (--rows 0 shows all)") >= 2
    assert "layers.8.weight" not in output
    assert main([*deep, "--rows", "0"]) == 0
    output = capsys.readouterr().out
    assert "--rows 0" not in output
    assert "layers.8.weight" in output


def test_drawings(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--html", "out/n.html", "--svg", "n.svg", "--png", "n.png"]
    assert main(["graph", *RESIDUAL, *files]) == 0
    output = capsys.readouterr().out
    assert all(f"drawing: {name}" in output for name in files[1::2])
    assert Path("out/n.html").read_text().startswith("<!doctype html>")
    assert "<svg" in Path("n.svg").read_text()
    assert Path("n.png").read_bytes().startswith(b"\x89PNG")


def test_the_current_directory_is_importable() -> None:
    source = str(Path(__file__).parents[2] / "src")
    command = [sys.executable, "-c", "import sys; from neural_graphs.cli import main; sys.exit(main())"]
    arguments = ["graph", "--model", "cli_nets:mlp", "--input", "3", "--json"]
    environment = {"PYTHONPATH": source, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["parameters"] == 5 * 3 + 5 + 2 * 5 + 2


MLP = ["--model", "cli_nets:mlp", "--input", "3"]
WRONG: list[tuple[list[str], str]] = [
    ([], "give CKPT, the file of a network, or --model"),
    (["-"], "give CKPT, the file of a network, or --model"),
    (["--model", "cli_nets:mlp"], "--input 3x224x224"),
    (["n.pt", "--model-args", "{}"], "--model-args needs --model"),
    ([*MLP, "--activation", "relu"], "--activation is for files of plain stacks"),
    ([*MLP, "--model-args", "{"], "is no JSON"),
    ([*MLP, "--model-args", "[]"], "is no JSON object"),
    (["--model", "cli_nets:mlp", "--input", "3,a=4"], "give every input a name or none"),
    (["--model", "cli_nets:mlp", "--input", "4"], "cli_nets:mlp: "),
    (["--model", "cli_nets:mlp", "--input", "x=3"], "cli_nets:mlp: "),
    (["--model", "cli_nets:Wavering", "--input", "3"], "not today"),
    (["--model", "cli_nets:Wavring", "--input", "3"], "did you mean Wavering?"),
    (["missing.pt", *MLP], "there is no file missing.pt"),
    (["extra.pt", *MLP], "extra.pt: the module has no tensor 9.weight"),
    (["shape.pt", *MLP], "shape.pt: 2.bias has shape 3 in the file, but 2 in the module"),
    (["other.pt"], "for any other network give --model and --input"),
    (["folder"], "folder has no config.json"),
    (["n.onnx", *MLP], "read it without a model"),
]


@pytest.mark.parametrize("verb", ["graph", "check"])
@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_wrong_input(arguments: list[str], words: str, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = module("mlp").state_dict()
    torch.save({**state, "9.weight": torch.ones(2)}, "extra.pt")
    torch.save({**state, "2.bias": torch.ones(3)}, "shape.pt")
    torch.save({"a.weight": torch.ones(2, 3), "a.scale": torch.ones(2), "b.weight": torch.ones(2, 2)}, "other.pt")
    Path("folder").mkdir()
    Path("n.onnx").touch()
    command = [verb, *arguments, "--activation", "relu"] if arguments == ["other.pt"] else [verb, *arguments]
    assert words in failure(command, capsys)


def test_drawings_have_their_suffix(capsys: pytest.CaptureFixture[str]) -> None:
    assert "must end in .png" in failure(["graph", *MLP, "--png", "n.svg"], capsys)
    assert "negative" in failure(["graph", *MLP, "--rows", "-1"], capsys)


def test_hub_folder(capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hub is not installed")
    transformers.utils.logging.disable_progress_bar()
    tokens = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=32, **tokens)
    transformers.GPT2LMHeadModel(config).save_pretrained("gpt2")
    found = parsed(["graph", "gpt2"], capsys)
    assert (found["source"], found["model"], found["lossy"]) == ("transformers", "GPT2LMHeadModel", None)
    assert found["symmetries"]["log10_order"] > 10
    assert parsed(["check", "gpt2", "--samples", "2"], capsys)["passed"]


def test_onnx_file_is_marked_lossy(capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "a.weight", "a.bias"], ["h"], transB=1),
        onnx.helper.make_node("Relu", ["h"], ["r"]),
        onnx.helper.make_node("MatMul", ["r", "val_3"], ["y"]),
    ]
    shapes = {"a.weight": (5, 3), "a.bias": (5,), "val_3": (5, 2)}
    torch.manual_seed(0)
    weights = [onnx.numpy_helper.from_array(torch.randn(shape).numpy(), name) for name, shape in shapes.items()]
    ends = [onnx.helper.make_tensor_value_info(name, 1, ("n", size)) for name, size in (("x", 3), ("y", 2))]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]), "n.onnx")
    assert main(["graph", "n.onnx"]) == 0
    output = capsys.readouterr().out
    assert "lossy: read from ONNX, for reading only" in output
    assert "symmetries: S5" in output
    found = parsed(["graph", "n.onnx"], capsys)
    assert found["source"] == "onnx"
    assert "edits cannot be written back" in found["lossy"]
    checked = parsed(["check", "n.onnx"], capsys)
    assert checked["passed"]
    assert "edits cannot be written back" in checked["lossy"]
