"""Architectures in use, with random weights: timm's for images, and language and audio models of transformers."""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from neural_graphs.bench._randomise import randomise, settle
from neural_graphs.bench._trace_nets import Factory
from neural_graphs.errors import UserError

VOCABULARY = 1000
"""Tokens of the language models, but for GPT-2, which is as published."""


def _tokens(batch: int = 2, length: int = 12, vocabulary: int = VOCABULARY) -> Tensor:
    return torch.randint(5, vocabulary, (batch, length))


def _ids() -> dict[str, Tensor]:
    return {"input_ids": _tokens()}


def _sequence_to_sequence() -> dict[str, Tensor]:
    return {"input_ids": _tokens(), "decoder_input_ids": _tokens(length=5)}


class Logits(nn.Module):
    """A model of transformers that returns its logits and none of the hidden states that it returns beside them.

    A hidden state in the output fixes the order of its units: the whole residual stream of T5's encoder, say.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs).logits


def _seeded(build: Callable[[], tuple[nn.Module, Any]]) -> Factory:
    def factory() -> tuple[nn.Module, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module, example = build()
            randomise(module.eval())
        return settle(module, example), example

    return factory


def _timm(name: str) -> Factory:
    def build() -> tuple[nn.Module, Any]:
        return import_timm().create_model(name), torch.randn(1, 3, 224, 224)

    return _seeded(build)


def _transformers(
    model: str,
    config: str,
    inputs: Callable[[], dict[str, Tensor]] = _ids,
    only_logits: bool = False,
    experts: str | None = None,
    **settings: Any,
) -> Factory:
    def build() -> tuple[nn.Module, Any]:
        transformers = _import("transformers")
        sizes = getattr(transformers, config)(**settings)
        sizes.use_cache = False  # the cache would be a second output, of keys and values
        module: Any = getattr(transformers, model)(sizes)
        if experts is not None:
            module.set_experts_implementation(experts)
        return Logits(module) if only_logits else module, inputs()

    return _seeded(build)


def _smaller(factory: Factory, suffix: str, factor: float) -> Factory:
    """``factory`` with all parameters whose name ends in ``suffix`` times ``factor``."""

    def build() -> tuple[nn.Module, Any]:
        module, example = factory()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith(suffix):
                    parameter.mul_(factor)
        return module, example

    return build


def require(package: str) -> Any:
    """``timm`` or ``transformers``; raises ``UserError`` where it is not installed."""
    return import_timm() if package == "timm" else _import(package)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed ({error}): pip install 'neural-graphs[hub]'") from None


def import_timm() -> Any:
    """The package ``timm``, also where torchvision, which it imports for image transforms and data sets, is absent.

    Models need none of it. torchvision's compiled operators must match the build of torch to the letter, so many
    environments lack it or have one that does not import. Raises ``UserError`` without timm.
    """
    with contextlib.ExitStack() as stack:
        if "timm" not in sys.modules and importlib.util.find_spec("torchvision") is None:
            stack.enter_context(_torchvision_stand_in())
        return _import("timm")


class _Interpolation(enum.Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class _Absent(nn.Module):
    """Stands for every class of torchvision: something to inherit from and to compare types with."""


class _StandIn(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012 (a package without files)
    InterpolationMode = _Interpolation

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent


@contextlib.contextmanager
def _torchvision_stand_in() -> Iterator[None]:
    names = ("", ".transforms", ".transforms.functional", ".datasets", ".ops", ".ops.misc")
    modules = {f"torchvision{name}": _StandIn(f"torchvision{name}") for name in names}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)


VISION: dict[str, Factory] = {
    "resnet18": _timm("resnet18"),
    "mobilenetv3": _timm("mobilenetv3_small_100"),
    "densenet121": _timm("densenet121"),
    "convnext": _timm("convnext_atto"),
    "efficientnet": _timm("efficientnet_b0"),
    "regnet": _timm("regnety_002"),
    "vit": _timm("vit_tiny_patch16_224"),
    "mlp-mixer": _timm("mixer_s32_224"),
    "swin": _timm("swin_tiny_patch4_window7_224"),
}
"""Name -> factory of a vision model as timm defines it, on one image of 224 x 224."""

_WIDTH: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
_MLP: dict[str, Any] = {**_WIDTH, "intermediate_size": 512}
_GROUPED: dict[str, Any] = {**_MLP, "num_key_value_heads": 2, "max_position_embeddings": 128}
_SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

LANGUAGE: dict[str, Factory] = {
    "bert": _transformers("BertForMaskedLM", "BertConfig", vocab_size=VOCABULARY, num_hidden_layers=2),
    "modernbert": _transformers(
        "ModernBertForMaskedLM", "ModernBertConfig", **_MLP, **_SPECIAL, cls_token_id=3, sep_token_id=4
    ),
    "deberta": _transformers(
        "DebertaV2ForMaskedLM", "DebertaV2Config", **_MLP, relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    "gpt2": _transformers(
        "GPT2LMHeadModel", "GPT2Config", lambda: {"input_ids": _tokens(batch=1, length=16, vocabulary=50257)}
    ),
    "gpt-neox": _transformers("GPTNeoXForCausalLM", "GPTNeoXConfig", **_MLP, **_SPECIAL, max_position_embeddings=128),
    "opt": _transformers("OPTForCausalLM", "OPTConfig", **_WIDTH, **_SPECIAL, ffn_dim=512, word_embed_proj_dim=256),
    "bloom": _transformers(
        "BloomForCausalLM", "BloomConfig", vocab_size=VOCABULARY, hidden_size=256, n_layer=2, n_head=8, **_SPECIAL
    ),
    "falcon": _transformers("FalconForCausalLM", "FalconConfig", **_WIDTH, **_SPECIAL),
    "llama": _transformers("LlamaForCausalLM", "LlamaConfig", **_GROUPED),
    "mistral": _transformers("MistralForCausalLM", "MistralConfig", **_GROUPED, sliding_window=8),
    "qwen3": _transformers("Qwen3ForCausalLM", "Qwen3Config", **_GROUPED, head_dim=32),
    "gemma": _transformers("GemmaForCausalLM", "GemmaConfig", **_GROUPED, head_dim=32),
    "phi3": _transformers("Phi3ForCausalLM", "Phi3Config", **_GROUPED, **_SPECIAL),
    # The default, grouped matrix products, knows no float64.
    "mixtral": _transformers(
        "MixtralForCausalLM", "MixtralConfig", experts="batched_mm", **_GROUPED, num_local_experts=4
    ),
    "mamba": _transformers(
        "MambaForCausalLM", "MambaConfig", vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=2
    ),
    # T5 does not divide its scores by the square root of the head's width; its trained weights make up for it.
    "t5": _smaller(
        _transformers(
            "T5ForConditionalGeneration",
            "T5Config",
            _sequence_to_sequence,
            only_logits=True,
            vocab_size=VOCABULARY,
            num_layers=2,
        ),
        ".q.weight",
        1 / 8,
    ),
    "bart": _transformers(
        "BartForConditionalGeneration",
        "BartConfig",
        _sequence_to_sequence,
        only_logits=True,
        vocab_size=VOCABULARY,
        d_model=256,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
    ),
    "whisper": _transformers(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        lambda: {"input_features": torch.randn(1, 80, 100), "decoder_input_ids": _tokens(batch=1, length=5)},
        only_logits=True,
        vocab_size=VOCABULARY,
        encoder_layers=2,
        decoder_layers=2,
        max_source_positions=50,
        decoder_start_token_id=1,
        **_SPECIAL,
    ),
    "wav2vec2": _transformers(
        "Wav2Vec2ForCTC", "Wav2Vec2Config", lambda: {"input_values": torch.randn(1, 4000)}, num_hidden_layers=2
    ),
}
"""Name -> factory of a language or audio model of transformers: two layers, GPT-2 in full."""
