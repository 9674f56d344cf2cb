"""Hugging Face folders: every kind of weights file, inputs from the config, and folders that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from neural_graphs.errors import UserError
from neural_graphs.explore import load_model

transformers = pytest.importorskip("transformers", reason="the extra hub is not installed")

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SEQUENCE = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}  # fmt: skip


def folder(name: str, kind: str, path: str = "net", **settings: Any) -> Any:
    """A tiny model with random weights, saved as a folder."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, kind)(**settings))
    model.save_pretrained(path)
    return model


def bert(**settings: Any) -> Any:
    return folder("BertForMaskedLM", "BertConfig", **TINY, **TOKENS, **settings)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def edit_config(**changes: Any) -> None:
    path = Path("net/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file("net/model.safetensors")
    change(state)
    save_file(state, "net/model.safetensors", {"format": "pt"})


MODELS: list[tuple[str, str, dict[str, Any], dict[str, tuple[int, ...]]]] = [
    ("BertForMaskedLM", "BertConfig", {**TINY, **TOKENS}, {"input_ids": (2, 16)}),
    ("GPT2LMHeadModel", "GPT2Config", {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 9, **TOKENS},
     {"input_ids": (2, 9)}),
    ("MixtralForCausalLM", "MixtralConfig", {**TINY, **TOKENS, "num_key_value_heads": 1, "num_local_experts": 3},
     {"input_ids": (2, 16)}),
    ("T5ForConditionalGeneration", "T5Config", {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2},
     {"input_ids": (2, 16), "decoder_input_ids": (2, 8)}),
    ("WhisperForConditionalGeneration", "WhisperConfig",
     {**SEQUENCE, **TOKENS, "num_mel_bins": 8, "max_source_positions": 20, "decoder_start_token_id": 1},
     {"input_features": (2, 8, 40), "decoder_input_ids": (2, 8)}),
    ("ViTForImageClassification", "ViTConfig", {**TINY, "image_size": [16, 24], "patch_size": 8},
     {"pixel_values": (3, 3, 16, 24)}),
    ("CLIPModel", "CLIPConfig", {"text_config": {**TINY, **TOKENS},
                                 "vision_config": {**TINY, "image_size": 16, "patch_size": 8}},
     {"input_ids": (2, 16), "pixel_values": (2, 3, 16, 16)}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "settings", "shapes"), MODELS, ids=[model[0] for model in MODELS])
def test_models_are_read_with_inputs_that_they_take(
    name: str, kind: str, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    model = folder(name, kind, **settings)
    loaded = load_model("net")
    assert {key: tuple(value.shape) for key, value in loaded.inputs.items()} == shapes
    found, expected = loaded.module.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert loaded.facts == {"name": "net", "source": "transformers", "model": name, "lossy": None, "notes": []}
    with torch.no_grad():
        assert loaded.module(**loaded.inputs)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision_is_that_of_the_weights(dtype: torch.dtype) -> None:
    bert()
    edit_weights(lambda state: state.update({name: value.to(dtype) for name, value in state.items()}))
    loaded = load_model("net")
    assert loaded.module.dtype == dtype
    assert loaded.module.config.use_cache is False


def test_shards_and_pickles() -> None:
    model = bert()
    state = load_file("net/model.safetensors")
    Path("net/model.safetensors").unlink()
    torch.save(state, "net/pytorch_model.bin")
    assert torch.equal(load_model("net").module.cls.predictions.bias, model.cls.predictions.bias)
    Path("net/pytorch_model.bin").unlink()
    names = sorted(state)
    places = {name: f"model-0000{1 + k % 2}-of-00002.safetensors" for k, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: state[name] for name in names if places[name] == file}, Path("net", file))
    Path("net/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert torch.equal(load_model("net").module.cls.predictions.bias, model.cls.predictions.bias)


def test_inputs_of_the_caller_replace_those_of_the_config() -> None:
    folder("T5ForConditionalGeneration", "T5Config", d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2)
    shapes = {key: tuple(value.shape) for key, value in load_model("net", inputs="ids:5:9").inputs.items()}
    assert shapes == {"input_ids": (2, 5), "decoder_input_ids": (2, 8)}
    loaded = load_model("net", inputs="decoder_input_ids=ids:3:4")
    assert loaded.inputs["input_ids"].shape == (2, 16)
    assert loaded.inputs["decoder_input_ids"].shape == (2, 3)
    assert loaded.inputs["decoder_input_ids"].max() < 4
    with pytest.raises(UserError, match="with their names"):
        load_model("net", inputs="ids:5,ids:5")


def test_tensors_without_a_place_are_noted() -> None:
    bert()
    edit_weights(lambda state: state.update({"cls.seq_relationship.bias": torch.ones(2)}))
    (note,) = load_model("net").facts["notes"]
    assert "1 tensors of the file have no place in BertForMaskedLM: cls.seq_relationship.bias" in note


BIAS = "cls.predictions.bias"
WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: edit_weights(lambda s: s.pop(BIAS)), f"net: the file lacks the tensor {BIAS} (and 1 more)"),
    (lambda: edit_weights(lambda s: s.update({BIAS: torch.ones(7)})), f"{BIAS} has shape (7,) in the file, but (50,)"),
    (lambda: edit_weights(lambda s: s.update({BIAS: s[BIAS] * float("nan")})), f"NaN or infinite values in {BIAS}"),
    (lambda: edit_weights(lambda s: s.update({BIAS: s[BIAS].long()})), f"{BIAS} holds int64 numbers"),
    (lambda: edit_weights(lambda s: s.update({BIAS: s[BIAS].to(torch.complex64)})), f"{BIAS} is complex"),
    (lambda: edit_config(architectures=["EvilForMaskedLM"]), "no model EvilForMaskedLM, and code that a folder brings"),
    (lambda: edit_config(architectures=["logging"]), "no model logging"),
    (lambda: edit_config(architectures=[3]), "no model 3"),
    (lambda: edit_config(model_type="evil", auto_map={"AutoModel": "evil.Evil"}), "knows no model type evil"),
    (lambda: edit_config(quantization_config={"bits": 4}), "quantised"),
    (lambda: edit_config(hidden_size=17), "cannot be made from this config"),
    (lambda: edit_config(hidden_size="wide"), "net: "),
    (lambda: Path("net/config.json").write_text("{"), "is not a JSON file"),
    (lambda: Path("net/config.json").write_text("[]"), "is no JSON object"),
    (lambda: Path("net/config.json").write_text("{}"), "names no model_type"),
    (lambda: Path("net/config.json").write_text('{"architecture": "resnet18"}'), "timm:create_model"),
    (lambda: Path("net/config.json").unlink(), "net has no config.json"),
    (lambda: Path("net/model.safetensors").unlink(), "net holds no weights"),
    (lambda: Path("net/model.safetensors").write_bytes(b"\0" * 20), "may be truncated"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_folders_that_are_refused(change: Callable[[], Any], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    bert()
    capfd.readouterr()
    change()
    with pytest.raises(UserError) as error:
        load_model("net")
    assert words in str(error.value)
    assert "net" in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # transformers adds nothing of its own


def test_code_in_a_folder_is_not_run() -> None:
    bert()
    Path("net/evil.py").write_text("import os\nos.mkdir('executed')\nclass Evil: pass\n")
    edit_config(
        auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoModelForMaskedLM": "evil.Evil"},
        _attn_implementation="someone/kernel",
        attn_implementation="someone/kernel",
    )
    assert type(load_model("net").module).__name__ == "BertForMaskedLM"
    assert not Path("executed").exists()


def test_a_config_without_architecture_gives_the_plain_model() -> None:
    folder("BertModel", "BertConfig", **TINY, **TOKENS)
    edit_config(architectures=None)
    assert type(load_model("net").module).__name__ == "BertModel"
