"""Training on a CUDA device, in every precision, and through torch.compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from neural_graphs.errors import UserError
from neural_graphs.nn import list_encoders
from neural_graphs.tasks import Classifier, train
from neural_graphs.tasks._runtime import compiled
from neural_graphs.zoo import Zoo

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@cuda
@pytest.mark.parametrize("precision", ["fp32", "auto", "bf16"])
@pytest.mark.parametrize("name", list_encoders())
def test_one_epoch_on_cuda(zoo: Zoo, tmp_path: Path, config: Any, name: str, precision: str) -> None:
    result = train(
        config(zoo, tmp_path / "run", epochs=1, encoder={"name": name}, precision=precision, device="auto"), quiet=True
    )
    assert result.history[-1]["train_loss"] > 0
    model = Classifier.from_pretrained(tmp_path / "run")
    assert model.score(zoo.test) == result.test_accuracy


@pytest.mark.slow
def test_training_compiled_equals_training_eager(zoo: Zoo, tmp_path: Path, config: Any) -> None:
    try:
        compiled(torch.nn.Linear(1, 1), torch.device("cpu"))
    except UserError as error:
        pytest.skip(str(error))
    runs = {}
    for wanted in (False, True):
        options = {"encoder": {"name": "probing", "width": 8, "layers": 2, "probes": 4}, "compile": wanted}
        runs[wanted] = train(config(zoo, tmp_path / str(wanted), epochs=2, **options), quiet=True).history
    for eager, fused in zip(runs[False], runs[True], strict=True):
        assert abs(eager["train_loss"] - fused["train_loss"]) < 1e-4
        assert abs(eager["val_loss"] - fused["val_loss"]) < 1e-4


def test_a_machine_that_cannot_compile_says_so(zoo: Zoo, tmp_path: Path, config: Any, monkeypatch: Any) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        UserError, match=r"torch.compile does not work here: set compile=false \(no C\+\+ compiler found\)"
    ):
        train(config(zoo, tmp_path / "run", epochs=1, compile=True), quiet=True)
