"""`neural-graphs bench VERB`: measurements, and the tables made from them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from neural_graphs._threads import default_threads
from neural_graphs.cli import _bench_classifiers, _bench_edit, _bench_nowcast, _bench_optimizer, _bench_optimizer_step
from neural_graphs.cli._bench_output import add_speed, show
from neural_graphs.cli._parser import (
    Parser,
    add_json,
    add_threads,
    add_verb,
    integers,
    load,
    positive,
)


def add(verbs: Any) -> None:
    parser = add_verb(verbs, "bench", "measure speed and accuracy", "neural-graphs bench step --out step.json", None)
    inner = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    step = add_verb(
        inner,
        "step",
        "time training steps of an encoder against its textbook twin",
        "neural-graphs bench step --out step.json",
        _step,
    )
    add_speed(step, "results/step.json, or results/step-ng-t.json")
    step.set_defaults(out=None)
    step.add_argument("--encoder", choices=("ng-gnn", "ng-t"), default="ng-gnn", help="(default: ng-gnn)")
    step.add_argument("--mixed", action="store_true", help="networks of different architectures (CNN Wild Park)")
    step.add_argument("--batch", type=positive, metavar="N", help="networks per step (default: 64, mixed 32)")
    step.add_argument("--width", type=positive, default=64, metavar="N", help="of the encoder (default: 64)")
    step.add_argument("--layers", type=positive, default=4, metavar="N", help="of the encoder (default: 4)")
    step.add_argument("--probes", type=int, default=0, metavar="N", help="probe features (default: 0)")
    step.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of our edges (default: fp32)")

    fit = add_verb(
        inner,
        "fit",
        "time bulk fitting of INRs against a loop over networks",
        "neural-graphs bench fit --out fit.json",
        _fit,
    )
    add_speed(fit, "results/fit.json")
    fit.add_argument("--networks", type=positive, default=256, metavar="N", help="fitted at once (default: 256)")
    fit.add_argument("--steps", type=positive, default=100, metavar="N", help="optimiser steps (default: 100)")
    fit.add_argument(
        "--many",
        type=positive,
        default=10_000,
        metavar="N",
        help="size of the zoo for the memory ratio (default: 10000)",
    )

    render = add_verb(
        inner,
        "render",
        "time rendering INRs in bulk, with and without gradients, against a loop over networks",
        "neural-graphs bench render --out render.json",
        _render,
    )
    add_speed(render, "results/render.json")
    render.add_argument("--networks", type=positive, default=256, metavar="N", help="drawn at once (default: 256)")
    render.add_argument("--side", type=positive, default=28, metavar="N", help="pixels (default: 28, for 28x28)")

    inr = add_verb(
        inner,
        "inr",
        "train classifiers on a zoo of INRs with several seeds, and write their accuracies",
        "neural-graphs bench inr runs/quickstart/zoo --methods inr-mlp --seeds 0 --out digits.json",
        _inr,
        "Finished runs are not repeated; interrupted ones go on where they were.",
    )
    inr.add_argument("zoo", metavar="ZOO", help="folder of a zoo")
    inr.add_argument("overrides", metavar="key=value", nargs="*", help="settings to override in all runs")
    inr.add_argument("--methods", metavar="A,B", help="presets or YAML files (default: inr-mlp,inr-cpu,inr-cpu-probes)")
    inr.add_argument("--seeds", type=integers, default=(0, 1, 2), metavar="N,N", help="(default: 0,1,2)")
    inr.add_argument(
        "--out", default="results/inr-mnist.json", metavar="FILE", help="(default: results/inr-mnist.json)"
    )
    inr.add_argument("--runs", default="runs/inr-mnist", metavar="DIR", help="run folders (default: runs/inr-mnist)")
    add_json(inr)
    add_threads(inr)

    encoders = add_verb(
        inner,
        "encoders",
        "train every encoder on one zoo, all alike, with several seeds: the ablation table",
        "neural-graphs bench encoders runs/quickstart/zoo optimizer.epochs=1 --methods mlp,probing --seeds 0 --out few.json",
        _encoders,
        "Finished runs are not repeated; interrupted ones go on where they were.",
    )
    _add_ablation(encoders, "encoders-mnist")
    encoders.add_argument("--methods", metavar="A,B", help="only these (default: all)")
    options = add_verb(
        inner,
        "options",
        "train encoders with every option of training (EMA, mixup, ...) on one zoo, otherwise alike",
        "neural-graphs bench options runs/quickstart/zoo --encoders probing --options none,ema --seeds 0 --out few.json",
        _options,
        "Finished runs are not repeated; interrupted ones go on where they were.",
    )
    _add_ablation(options, "options-mnist")
    options.add_argument("--encoders", default="ng-gnn-64,probing", metavar="A,B", help="(default: ng-gnn-64,probing)")
    options.add_argument("--options", metavar="A,B", help="only these (default: all)")

    _bench_classifiers.add(inner)
    _bench_edit.add(inner)
    _bench_optimizer.add(inner)
    _bench_optimizer_step.add(inner)
    _bench_nowcast.add(inner)

    trace = add_verb(
        inner,
        "trace",
        "trace architectures, and check the symmetries found on the networks themselves; exit code 1 if any fails",
        "neural-graphs bench trace --sets small --out trace.json",
        _trace,
        "The sets: small (networks of this library), vision (needs timm), language (needs transformers).\n"
        "Architectures in the results file that are not traced anew stay in it.",
    )
    trace.add_argument("--sets", default="small,vision,language", metavar="A,B", help="(default: all three)")
    trace.add_argument("--models", metavar="A,B", help="only these architectures, of whatever set")
    trace.add_argument("--samples", type=positive, default=3, metavar="N", help="group elements of each (default: 3)")
    trace.add_argument("--out", default="results/trace.json", metavar="FILE", help="(default: results/trace.json)")
    trace.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    add_json(trace)
    add_threads(trace)

    tables = add_verb(
        inner,
        "tables",
        "write the page of measured results from results/*.json",
        "neural-graphs bench tables --results results --page results.md",
        _tables,
    )
    tables.add_argument("--results", default="results", metavar="DIR", help="(default: results)")
    tables.add_argument("--page", default="docs/results.md", metavar="FILE", help="(default: docs/results.md)")
    tables.add_argument("--readme", metavar="FILE", help="also fill the table between the marks in this README")


def _add_ablation(parser: Parser, name: str) -> None:
    parser.add_argument("zoo", metavar="ZOO", help="folder of a zoo")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to override in all runs")
    parser.add_argument("--seeds", type=integers, default=(0, 1, 2), metavar="N,N", help="(default: 0,1,2)")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time, one thread each")
    parser.add_argument("--out", default=f"results/{name}.json", metavar="FILE", help=f"(default: results/{name}.json)")
    parser.add_argument("--runs", default=f"runs/{name}", metavar="DIR", help=f"run folders (default: runs/{name})")
    add_json(parser)


def _step(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import step

    kind = "-mixed" if options.mixed else "" if options.encoder == "ng-gnn" else "-ng-t"
    options.out = options.out or f"results/step{kind}.json"
    rows = step(
        options.out,
        encoder=options.encoder,
        mixed=options.mixed,
        batch=options.batch or (32 if options.mixed else 64),
        width=options.width,
        layers=options.layers,
        probes=options.probes,
        precision=options.precision,
        rounds=options.rounds,
        thread_count=options.threads or default_threads(),
        seed=options.seed,
        command=options.command,
    )
    return show(rows, options)


def _fit(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import fit

    rows = fit(
        options.out,
        networks=options.networks,
        steps=options.steps,
        rounds=options.rounds,
        thread_count=options.threads or default_threads(),
        many=options.many,
        few=max(1, options.many // 10),
        seed=options.seed,
        command=options.command,
    )
    return show(rows, options)


def _render(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import rendering

    rows = rendering(
        options.out,
        networks=options.networks,
        side=options.side,
        rounds=options.rounds,
        thread_count=options.threads or default_threads(),
        seed=options.seed,
        command=options.command,
    )
    return show(rows, options)


def _inr(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import inr_classification

    options.resume_hint = "finished runs are kept, run the same command again to go on"
    chosen = {"methods": options.methods.split(",")} if options.methods else {}
    threads = options.threads or default_threads()
    rows = inr_classification(
        options.zoo,
        seeds=options.seeds,
        out=options.out,
        runs=options.runs,
        overrides=[f"threads={threads}", *options.overrides],
        command=options.command,
        **chosen,
    )
    return show(rows, options)


def _encoders(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import encoder_ablation

    chosen = {"methods": options.methods.split(",")} if options.methods else {}
    return show(encoder_ablation(options.zoo, **chosen, **_ablation(options)), options)


def _options(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import option_ablation

    chosen = {"options": options.options.split(",")} if options.options else {}
    return show(option_ablation(options.zoo, options.encoders.split(","), **chosen, **_ablation(options)), options)


def _ablation(options: argparse.Namespace) -> dict[str, Any]:
    options.resume_hint = "finished runs are kept, run the same command again to go on"
    keys = ("seeds", "out", "runs", "overrides", "jobs", "command")
    return {key: getattr(options, key) for key in keys}


def _trace(options: argparse.Namespace) -> int:
    load("neural_graphs.bench")
    from neural_graphs.bench import faults, trace_architectures

    options.resume_hint = "what was traced is kept, name the rest with --models"
    rows = trace_architectures(
        options.out,
        sets=options.sets.split(","),
        models=options.models.split(",") if options.models else None,
        samples=options.samples,
        thread_count=options.threads or default_threads(),
        seed=options.seed,
        command=options.command,
    )
    show(rows, options)
    found = faults(rows)
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


def _tables(options: argparse.Namespace) -> int:
    from neural_graphs.bench import write_tables

    write_tables(options.results, options.page, options.readme)
    print(f"wrote {options.page}" + (f" and the table in {options.readme}" if options.readme else ""))
    return 0
