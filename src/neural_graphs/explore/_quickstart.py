"""From images to answers in a few minutes: fit networks to digits, learn to read them, look at the result.

Every phase leaves its result in the folder, so an interrupted quickstart goes on where it was, and a finished one is
only read again.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from neural_graphs._io import atomic_write, read_json, write_json
from neural_graphs.errors import UserError
from neural_graphs.explore._network_file import save_network
from neural_graphs.explore._report import Example, Method, Report, Single, clock, render_report
from neural_graphs.tasks import AugmentConfig, Classifier, OptimConfig, TrainConfig, TrainResult, predict, train
from neural_graphs.zoo import Zoo, ZooSplit, load_images, make_zoo, render

STATE = "quickstart.json"  # settings, seconds per phase, figures; its presence marks the folder as a quickstart's
EXAMPLE = 3  # the digit that the network kept as a file draws, where the test split has it
RESOLUTION = 64  # of the networks drawn on the report
PER_CLASS = 3  # networks of each class on the report's contact sheet
BATCH = 32
READS = {"ng-gnn": "the neural graph and probe features", "mlp": "raw weights"}
TITLES = {"ng-gnn": "NG-GNN", "mlp": "MLP"}
ENCODERS: dict[str, dict[str, Any]] = {
    "ng-gnn": {"name": "ng-gnn", "width": 32, "layers": 2, "probes": 64, "dropout": 0.0},
    "mlp": {"name": "mlp", "width": 128},
}
LEARNING_RATES = {"ng-gnn": 4e-3, "mlp": 1e-3}
# Digits moved and turned a little are the same digits. More than this loses some at the border of 8 x 8 pixels.
AUGMENT = AugmentConfig(translation=0.08, rotation=10.0, scaling=0.1, exact_translation=True)


@dataclass(frozen=True)
class Settings:
    """How large the quickstart is. `size` is the number of images (None: all 1,797), `views` of networks per image,
    `steps` of optimiser steps per network. Both methods train for `epochs` epochs on the same networks."""

    size: int | None = None
    views: int = 4
    steps: int = 300
    epochs: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """Figures of a finished quickstart in `folder`; `accuracy`, `parameters` and `train_seconds` are per method."""

    folder: Path
    settings: Settings
    threads: int
    networks: dict[str, int]
    accuracy: dict[str, float]
    parameters: dict[str, int]
    train_seconds: dict[str, float]
    phases: dict[str, float]
    chance: float
    example: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Of the whole run, over all its parts if it was interrupted."""
        return sum(self.phases.values())

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def example_file(self) -> Path:
        return self.folder / "example.safetensors"


def quickstart(
    folder: Path, settings: Settings, threads: int, force: bool = False, say: Callable[[str], None] = print
) -> Outcome:
    """Run what is missing of the quickstart in `folder`; `say` receives a line per step. `force` starts anew.

    Raises:
        UserError: `folder` holds something else, or a quickstart with other settings.
        RunError: the disk is full.
    """
    run = _Run(folder, settings, threads, say)
    run.open(force)
    if "outcome" in run.state:
        return Outcome(folder, settings, **run.state["outcome"])
    zoo = run.fit()
    results = {method: run.train(method, zoo, 2 + number) for number, method in enumerate(ENCODERS)}
    return run.look(zoo, results)


class _Run:
    def __init__(self, folder: Path, settings: Settings, threads: int, say: Callable[[str], None]) -> None:
        self.folder, self.settings, self.threads, self.say = folder, settings, threads, say
        self.state: dict[str, Any] = {"settings": asdict(settings), "phases": {}}

    def open(self, force: bool) -> None:
        path = self.folder / STATE
        if not path.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise UserError(f"{self.folder} exists and is no quickstart's folder: choose another --out")
        elif force:
            for name in ("zoo", *ENCODERS):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            for name in ("report.html", "results.json", "example.safetensors"):
                (self.folder / name).unlink(missing_ok=True)
        else:
            found = read_json(path)
            if not isinstance(found, dict) or found.get("settings") != self.state["settings"]:
                raise UserError(
                    f"{self.folder} holds a quickstart with other settings: add --force, or choose another --out"
                )
            self.state = found
            return
        write_json(path, self.state)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Count the time of a block, also of one that is interrupted and continued later."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.state["phases"][name] = self.state["phases"].get(name, 0.0) + time.monotonic() - start
            write_json(self.folder / STATE, self.state)

    def fit(self) -> Zoo:
        settings = self.settings
        images = settings.size or sum(len(load_images("digits", split)) for split in ("train", "test"))
        self.say(f"1/4  fit      {settings.views} small networks to each of {images:,} images of digits")
        with self._phase("fit networks"):
            zoo = make_zoo(
                self.folder / "zoo",
                images="digits",
                size=settings.size,
                views=settings.views,
                seed=settings.seed,
                widths=(16, 16),
                steps=settings.steps,
                workers=self.threads,
            )
        psnr = float(zoo.all.column("psnr_db").mean())
        self.say(
            f"              {len(zoo):,} networks {zoo.all.sole_architecture}, PSNR {psnr:.0f} dB"
            f"{self._took('fit networks')}"
        )
        return zoo

    def train(self, method: str, zoo: Zoo, number: int) -> TrainResult:
        settings = self.settings
        what = {"ng-gnn": "an equivariant graph network", "mlp": "the baseline, a plain network on raw weights"}[method]
        self.say(f"{number}/4  {method:<8} {what}: {len(zoo.train):,} networks, {settings.epochs} epochs")
        steps = settings.epochs * -(-len(zoo.train) // BATCH)
        optimizer = OptimConfig(
            epochs=settings.epochs,
            batch_size=BATCH,
            lr=LEARNING_RATES[method],
            warmup_steps=min(100, steps // 10),
            schedule="cosine",
            clip=1.0,
        )
        config = TrainConfig(
            zoo=str(self.folder / "zoo"),
            out=str(self.folder / method),
            encoder=ENCODERS[method],
            optimizer=optimizer,
            augment=AUGMENT,
            device="cpu",
            seed=settings.seed,
            threads=1,  # steps on networks this small are too short to share: two threads gain little
        )
        with self._phase(f"train {method}"):
            result = train(config, resume=True)
        self.say(
            f"              {result.test_accuracy or 0:.1%} of {len(zoo.test):,} networks of unseen images"
            f"{self._took(f'train {method}')}"
        )
        return result

    def look(self, zoo: Zoo, results: dict[str, TrainResult]) -> Outcome:
        path = self.folder / "example.safetensors"
        self.say(f"4/4  predict  one network that was held out, {path}")
        with self._phase("predict and report"):
            example = self._predict_one(zoo.test, path)
            truth, said = example["truth"], example["label"]
            self.say(f"              it is read as a {said} ({max(example['probabilities']):.1%}) and draws a {truth}")
        networks = {name: len(zoo.split(name)) for name in ("train", "val", "test")}
        outcome = Outcome(
            self.folder,
            self.settings,
            self.threads,
            networks=networks,
            accuracy={name: result.test_accuracy or 0.0 for name, result in results.items()},
            parameters={name: result.parameters for name, result in results.items()},
            train_seconds={name: result.seconds for name, result in results.items()},
            phases=self.state["phases"],
            chance=1 / len(zoo.meta["source"]["classes"]),
            example=example,
        )
        with self._phase("predict and report"), atomic_write(outcome.report) as temporary:
            temporary.write_text(render_report(_report(outcome, zoo, results)), encoding="utf-8")
        figures = asdict(outcome)
        self.state["outcome"] = {name: figures[name] for name in figures if name not in ("folder", "settings")}
        write_json(self.folder / STATE, self.state)
        return outcome

    def _predict_one(self, test: ZooSplit, path: Path) -> dict[str, Any]:
        """Save a test network as a file of its own and read that with the trained model."""
        chosen = _single(test)
        ((_, _, tensors),) = chosen.state_dicts()
        save_network(path, {name: value[0] for name, value in tensors.items()}, chosen.sole_architecture)
        (found,) = predict(self.folder / "ng-gnn", [path])
        if "error" in found:
            raise UserError(found["error"])
        return {**found, "truth": int(chosen.labels()[0]), "network": int(chosen.column("network")[0])}

    def _took(self, phase: str) -> str:
        return f", {clock(self.state['phases'][phase])}"


def _report(outcome: Outcome, zoo: Zoo, results: dict[str, TrainResult]) -> Report:
    stack = zoo.all.sole_architecture
    shown = _examples(zoo.test)
    rendered = render(shown, height=RESOLUTION, width=RESOLUTION)[..., 0]
    originals = load_images("digits", "test").as_float()[shown.column("image"), :, :, 0]
    model = Classifier.from_pretrained(outcome.folder / "ng-gnn")
    said = model.predict(shown)
    first = _single(zoo.test)
    return Report(
        architecture=str(stack),
        parameters=stack.num_parameters,
        psnr_db=float(zoo.all.column("psnr_db").mean()),
        images={name: count // outcome.settings.views for name, count in outcome.networks.items()},
        views=outcome.settings.views,
        class_names=model.class_names,
        methods=[
            Method(
                TITLES[name],
                READS[name],
                outcome.accuracy[name],
                result.parameters,
                outcome.settings.epochs,
                result.seconds,
                result.history,
            )
            for name, result in results.items()
        ],
        confusion=read_json(outcome.folder / "ng-gnn" / "metrics.json")["confusion"],
        examples=[
            Example(picture, image, int(truth), int(prediction))
            for picture, image, truth, prediction in zip(rendered, originals, shown.labels(), said, strict=True)
        ],
        single=Single(
            str(outcome.example_file),
            stack.graph(first.state_dicts()[0][2]),
            render(first, height=RESOLUTION, width=RESOLUTION)[0, :, :, 0],
            outcome.example["truth"],
            outcome.example["probabilities"],
        ),
        phases=outcome.phases,
        threads=outcome.threads,
        created=datetime.now().isoformat(sep=" ", timespec="minutes"),
        commands=next_commands(outcome),
    )


def _single(test: ZooSplit) -> ZooSplit:
    """The first test network that draws the digit `EXAMPLE`."""
    return test.select([int(np.argmax(test.labels().numpy() == EXAMPLE))])


def _examples(test: ZooSplit) -> ZooSplit:
    """The first networks of each class: one of each, then the second ones."""
    labels = test.labels().numpy()
    members = [np.flatnonzero(labels == kind) for kind in np.unique(labels)]
    count = min(PER_CLASS, *(len(rows) for rows in members))
    return test.select(np.stack([rows[:count] for rows in members], 1).ravel())


def next_commands(outcome: Outcome) -> list[tuple[str, str]]:
    """Commands that go on from here, each with what it does."""
    folder = outcome.folder
    return [
        (f"neural-graphs predict {folder}/ng-gnn {outcome.example_file}", "classify a network file of your own"),
        (f"neural-graphs graph {outcome.example_file} --html graph.html", "draw it and list its symmetries"),
        (f"neural-graphs check {outcome.example_file}", "verify the symmetries on the network itself"),
        (f"neural-graphs train inr-cpu zoo={folder}/zoo", "train with your own settings"),
    ]
