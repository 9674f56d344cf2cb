"""Models on the Hugging Face Hub, which is a folder here: what is uploaded, what is read back, what goes wrong."""

from __future__ import annotations

import fnmatch
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from neural_graphs.cli import main
from neural_graphs.errors import RunError, UserError
from neural_graphs.graph import Stack
from neural_graphs.nn import NGGNN, Encoder, create_encoder, list_encoders
from neural_graphs.tasks import Classifier, predict
from neural_graphs.testing import random_graph

STACK = Stack.mlp((2, 5, 1), "sine:30", shift=0.5)
FILES = {"README.md", "config.json", "model.safetensors"}


def made(name: str = "ng-gnn", **arguments: Any) -> Encoder:
    torch.manual_seed(0)
    wanted = {"width": 8, "layers": 2} if name == "ng-gnn" else {}
    encoder = create_encoder(name, **wanted, **arguments)
    encoder.fit_normalization([random_graph(STACK, 4, torch.float32)])
    return encoder.eval()


def classifier(**head: Any) -> Classifier:
    names = ["zero", "one | two", "```\n# three"]
    return Classifier(made(), 3, class_names=names, architectures=[STACK], head=head).eval()


class Hub:
    """The Hub's part of ``HfApi`` and ``snapshot_download``, on a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, **options: Any) -> Hub:  # HfApi(...)
        self.calls.append(("HfApi", options))
        return self

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, "private": private, "exist_ok": exist_ok}))
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> None:
        self.calls.append(("upload_folder", {"commit_message": commit_message}))
        for file in Path(folder_path).iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, self.root / repo_id / file.name)

    def snapshot_download(
        self,
        repo_id: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        library_name: str,
        library_version: str,
    ) -> str:
        self.calls.append(("snapshot_download", {"repo_id": repo_id, "revision": revision}))
        target = self.root / "cache" / repo_id
        target.mkdir(parents=True, exist_ok=True)
        for file in (self.root / repo_id).iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, target / file.name)
        return str(target)

    def files(self, repo_id: str) -> set[str]:
        return {file.name for file in (self.root / repo_id).iterdir()}

    def card(self, repo_id: str) -> tuple[dict[str, Any], str]:
        """The metadata block and the text."""
        _, block, text = (self.root / repo_id / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        return yaml.safe_load(block), text


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", found)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    monkeypatch.chdir(tmp_path)
    return found


# -- there and back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [{}, {"pooling": "attention", "over": "all"}])
def test_a_classifier_goes_to_the_hub_and_comes_back(head: dict[str, Any], hub: Hub) -> None:
    model, graph = classifier(**head), random_graph(STACK, 4, torch.float32)
    page = model.push_to_hub("me/it", metrics={"test accuracy": 0.97312}, private=True, message="First")
    assert page == "https://hub/me/it"
    assert hub.files("me/it") == FILES
    uploaded = load_file(hub.root / "me/it/model.safetensors")
    assert uploaded.keys() == model.state_dict().keys()
    assert all(torch.equal(uploaded[name], value) for name, value in model.state_dict().items())
    assert json.loads((hub.root / "me/it/config.json").read_text()) == json.loads(json.dumps(model.config()))
    assert [name for name, _ in hub.calls] == ["HfApi", "create_repo", "upload_folder"]
    assert hub.calls[1][1] == {"repo_id": "me/it", "private": True, "exist_ok": True}
    assert hub.calls[2][1] == {"commit_message": "First"}
    for source in ("me/it", "hf:me/it"):
        again = Classifier.from_pretrained(source)
        assert not again.training and again.config() == model.config()
        assert torch.equal(again.predict_proba(graph), model.predict_proba(graph))
    assert {file.name for file in (hub.root / "cache/me/it").iterdir()} == FILES - {"README.md"}
    model.push_to_hub("hf:me/it")  # over the older one, without metrics
    assert "Metrics" not in hub.card("me/it")[1]


@pytest.mark.parametrize("name", list_encoders())
def test_an_encoder_goes_to_the_hub_and_comes_back(name: str, hub: Hub, tmp_path: Path) -> None:
    parameters = {"parameters": STACK.num_parameters} if name == "mlp" else {}
    encoder, graph = made(name, **parameters), random_graph(STACK, 3, torch.float32)
    encoder.push_to_hub("me/encoder")
    encoder.save_pretrained(tmp_path / "folder")
    right = encoder(graph)
    for source in ("me/encoder", tmp_path / "folder", str(tmp_path / "folder")):
        again = Encoder.from_pretrained(source)
        assert type(again) is type(encoder) and again.config == encoder.config and not again.training
        found = again(graph)
        pairs = (
            [(found.vector, right.vector)] if right.nodes is None else zip(found.nodes[0], right.nodes[0], strict=True)
        )
        assert all(torch.equal(a, b) for a, b in pairs)
    assert hub.files("me/encoder") == FILES
    assert {file.name for file in (tmp_path / "folder").iterdir()} == FILES - {"README.md"}


def test_the_encoder_of_a_classifier_is_read(tmp_path: Path) -> None:
    model, graph = classifier(), random_graph(STACK, 3, torch.float32)
    model.save(tmp_path / "run" / "model")
    encoder = Encoder.from_pretrained(tmp_path / "run")  # also from the folder of a training run
    assert torch.equal(encoder(graph).nodes[0][-1], model.encoder(graph).nodes[0][-1])
    made().save_pretrained(tmp_path / "encoder")
    with pytest.raises(UserError, match="config.json describes no classifier"):
        Classifier.from_pretrained(tmp_path / "encoder")


def test_a_revision_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    model = classifier()
    model.push_to_hub("me/it")
    Classifier.from_pretrained("me/it", revision="v2")
    Encoder.from_pretrained("me/it", revision="v3")
    Classifier.from_pretrained("me/it")
    revisions = [options["revision"] for name, options in hub.calls if name == "snapshot_download"]
    assert revisions == ["v2", "v3", None]
    model.save(tmp_path / "here")
    with pytest.raises(UserError, match="revision is of a repository.*leave it out"):
        Classifier.from_pretrained(tmp_path / "here", revision="v2")


def test_a_folder_comes_before_the_hub(hub: Hub, tmp_path: Path) -> None:
    """Unless the name begins with hf:, or a path is no string."""
    here, there = classifier(), classifier(pooling="mean")
    there.push_to_hub("me/it")
    here.save(tmp_path / "me" / "it")
    assert Classifier.from_pretrained("me/it").head_config == {}
    assert Classifier.from_pretrained("hf:me/it").head_config == {"pooling": "mean"}
    for missing in (Path("me/other"), "me/it/other", "./other", "other", str(tmp_path / "other")):
        with pytest.raises(UserError, match="there is no model folder"):
            Classifier.from_pretrained(missing)
    assert len([name for name, _ in hub.calls if name == "snapshot_download"]) == 1


def test_the_card_says_what_it_is(hub: Hub) -> None:
    model = classifier(pooling="max")
    model.push_to_hub("me/it", metrics={"test accuracy": 0.97312, "networks": 4000, "a|b\nc": "<x>"})
    head, text = hub.card("me/it")
    assert head == {"library_name": "neural-graphs", "tags": ["neural-graphs", "weight-space-learning", "ng-gnn"]}
    lines = text.splitlines()
    for line in (
        "# it",
        f"| parameters | {sum(p.numel() for p in model.parameters()):,} |",
        "| task | classify |",
        "| trained on | 2-5-1 sine:30 |",
        f"| torch | {torch.__version__} |",
        "| test accuracy | 0.9731 |",
        "| networks | 4000 |",
        "| a\\|b c | &lt;x> |",
    ):
        assert line in lines, line
    assert lines.count("```") == 2  # names of classes cannot end the block that they stand in
    shown = json.loads(text.split("```json\n")[1].split("\n```")[0])
    assert shown["encoder"] == model.encoder.config and shown["head"] == {"pooling": "max"}
    assert shown["class_names"] == list(model.class_names)


@pytest.mark.parametrize("kind", ["classifier", "encoder"])
def test_the_three_lines_of_the_card_run(kind: str, hub: Hub) -> None:
    model = classifier()
    (model if kind == "classifier" else model.encoder).push_to_hub("me/it")
    lines = hub.card("me/it")[1].split("```python\n")[1].split("\n```")[0].splitlines()
    assert len(lines) == 3
    names: dict[str, Any] = {"network": STACK.module(), "graph": random_graph(STACK, 2, torch.float32)}
    exec("\n".join(lines), names)
    assert isinstance(names["model" if kind == "classifier" else "encoder"], Classifier | Encoder)


def test_networks_are_classified_by_a_model_of_the_hub(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier()
    model.push_to_hub("me/it")
    state = random_graph(STACK, 1, torch.float32).to_state_dict()
    save_file(state, tmp_path / "net.safetensors")
    (result,) = predict("me/it", [tmp_path / "net.safetensors"])
    torch.testing.assert_close(torch.tensor(result["probabilities"]), model.predict_proba(state)[0])
    assert main(["predict", "hf:me/it", "net.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["probabilities"] == result["probabilities"]


# -- what is downloaded may be anything ------------------------------------------------------------------------------------


def test_only_the_two_files_are_downloaded(hub: Hub) -> None:
    classifier().push_to_hub("me/it")
    for name in ("model.py", "pytorch_model.bin", "config.py", "tokenizer.json"):
        (hub.root / "me/it" / name).write_text("raise SystemExit('executed')")
    Classifier.from_pretrained("me/it")
    assert {file.name for file in (hub.root / "cache/me/it").iterdir()} == FILES - {"README.md"}
    (hub.root / "me/it/model.safetensors").unlink()
    shutil.rmtree(hub.root / "cache")
    with pytest.raises(UserError, match=r"me/it holds no model: it has no model.safetensors"):
        Classifier.from_pretrained("me/it")


BROKEN: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: c["encoder"].update(name="os.system"), "unknown encoder 'os.system': choose one of"),
    (lambda c: c["encoder"].update(name=["a"]), "config.json is broken: TypeError"),
    (lambda c: c["encoder"].update(hidden=3), "encoder ng-gnn has no argument 'hidden'"),
    (lambda c: c["encoder"].update(width="wide"), "encoder ng-gnn: "),
    (lambda c: c["encoder"].update(width=-8), "width, layers and max_io must be positive"),
    (lambda c: c["encoder"].update(width=16), "does not belong to config.json"),
    (lambda c: c["encoder"].pop("name"), "config.json is broken: TypeError"),
    (lambda c: c.update(encoder=None), "config.json is broken: TypeError"),
    (lambda c: c.update(encoder={"name": "ng-gnn", "width": 1 << 40}), "config.json is broken: "),
    (lambda c: c.pop("state"), "config.json is broken: KeyError: 'state'"),
    (lambda c: c.update(state=[]), "config.json is broken: AttributeError"),
    (lambda c: c.update(format=2), "made by a newer version of neural-graphs .format 2.*pip install --upgrade"),
    (lambda c: c.pop("format"), "newer version of neural-graphs .format None"),
    (lambda c: c.update(task="paint"), "config.json describes no (classifier|encoder)"),
    (lambda c: c.pop("task"), "config.json describes no (classifier|encoder)"),
]


@pytest.mark.parametrize("kind", [Classifier, Encoder])
@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_broken_configs_are_one_line(
    kind: Any, change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    model = classifier()
    model.save(tmp_path) if kind is Classifier else model.encoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        kind.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [Classifier, Encoder])
def test_broken_weights_are_one_line(kind: Any, tmp_path: Path) -> None:
    model = classifier()
    model.save(tmp_path) if kind is Classifier else model.encoder.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    file.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="is broken or truncated"):
        kind.from_pretrained(tmp_path)
    tensors.popitem()
    save_file(tensors, file)
    with pytest.raises(UserError, match="does not belong to config.json: their tensors differ"):
        kind.from_pretrained(tmp_path)


def test_what_cannot_be_pushed_is_one_line(hub: Hub) -> None:
    model = classifier()
    for name in ("it", "me/", "hf:it", "../it", "me/it/more", "me/it;rm", "https://x/me/it", "me/a--b", ""):
        with pytest.raises(UserError, match="is no repository of the Hub: write owner/name"):
            model.push_to_hub(name)
        with pytest.raises(UserError, match="is no repository of the Hub: write owner/name"):
            Classifier.from_pretrained(f"hf:{name.removeprefix('hf:')}")
    unnamed = NGGNN(width=8)
    with pytest.raises(UserError, match="make it with create_encoder"):
        unnamed.push_to_hub("me/it")
    assert not hub.calls


# -- the real client, and a Hub that does not answer, or does not want to --------------------------------------------------


class Answer(BaseHTTPRequestHandler):
    """The same answer to every request."""

    status, code = 500, ""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("X-Error-Code", self.code)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"{}")

    do_POST = do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def use(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)

    return use


@pytest.fixture
def refusing(endpoint: Callable[[str], None]) -> Iterator[Callable[[int, str], None]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    endpoint(f"http://127.0.0.1:{server.server_port}")

    def answer(status: int, code: str) -> None:
        Answer.status, Answer.code = status, code

    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


def tried(action: Callable[[], Any], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_network(endpoint: Callable[[str], None]) -> None:
    endpoint("http://127.0.0.1:9")
    said = tried(lambda: Classifier.from_pretrained("me/it"), RunError)
    assert "there is no folder me/it, and me/it cannot be downloaded from the Hub, and is not in its cache here" in said
    assert "refused" in said
    assert tried(lambda: Encoder.from_pretrained("hf:me/it"), RunError).startswith("me/it cannot be downloaded")
    assert "cannot be uploaded to me/it on the Hub" in tried(lambda: classifier().push_to_hub("me/it"), RunError)


@pytest.mark.parametrize(
    ("status", "code", "read", "write"),
    [
        (404, "RepoNotFound", "the Hub has no me/it that you may use", "the Hub has no me/it that you may use"),
        (404, "RevisionNotFound", "me/it has no such revision", "me/it has no such revision"),
        (401, "", "the Hub does not let you do this with me/it: log in with `hf auth login`", "or set HF_TOKEN"),
        (403, "", "the Hub does not let you do this with me/it: log in", "the Hub does not let you do this"),
        (403, "GatedRepo", "me/it is gated: ask for access on its page", "me/it is gated"),
    ],
)
def test_refusals(status: int, code: str, read: str, write: str, refusing: Callable[[int, str], None]) -> None:
    refusing(status, code)
    assert read in tried(lambda: Classifier.from_pretrained("hf:me/it"), UserError)
    assert write in tried(lambda: classifier().push_to_hub("me/it"), UserError)


def test_a_hub_that_is_out_of_order(refusing: Callable[[int, str], None]) -> None:
    refusing(500, "")
    assert "500" in tried(lambda: Classifier.from_pretrained("hf:me/it"), RunError)
    assert "500" in tried(lambda: classifier().push_to_hub("me/it"), RunError)
