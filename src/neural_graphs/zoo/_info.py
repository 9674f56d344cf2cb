"""What a zoo holds, as data and as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from neural_graphs.errors import UserError
from neural_graphs.zoo._info_classifiers import classifier_info, print_classifiers, summary_rows
from neural_graphs.zoo._statistics import compare_statistics
from neural_graphs.zoo._store import SPLITS, WEIGHTS, Zoo

if TYPE_CHECKING:
    from rich.console import Console

MOST_ARCHITECTURES = 20
"""Lines of the printed table of architectures."""


def zoo_info(zoo: Zoo) -> dict[str, Any]:
    """Size, splits, classes, architectures, quality of fit and weight statistics of a zoo, JSON-able.

    ``statistics`` compares every tensor's standard deviation with the published corpus of the same recipe and images;
    it is empty where there is none. Reads all training weights once. A zoo of classifiers, whose networks have a
    ``test_accuracy``, has ``classifiers``: see ``classifier_info``.
    """
    kinds, counts = np.unique(zoo.all.column("architecture").astype(str), return_counts=True)
    info: dict[str, Any] = {
        "path": str(zoo.path),
        "name": zoo.meta.get("name", zoo.path.name),
        "complete": zoo.complete,
        "networks": len(zoo),
        "planned_networks": zoo.meta.get("networks", len(zoo)),
        "splits": {name: len(zoo.split(name)) for name in SPLITS},
        "architectures": [
            {
                "id": kind,
                "architecture": str(zoo.architectures[kind]),
                "parameters": zoo.architectures[kind].num_parameters,
                "networks": int(count),
            }
            for kind, count in zip(kinds, counts, strict=True)
        ],
        "columns": zoo.table.column_names,
        "bytes": sum(file.stat().st_size for file in (zoo.path / WEIGHTS).glob("[!.]*.safetensors")),
        "recipe": zoo.meta.get("recipe", {}),
        "seed": zoo.meta.get("seed"),
        "source": zoo.meta.get("source", {}),
    }
    if "label" in zoo.table.column_names:
        labels, per_label = np.unique(zoo.all.labels().numpy(), return_counts=True)
        info["labels"] = dict(zip(labels.tolist(), per_label.tolist(), strict=True))
    if "psnr_db" in zoo.table.column_names and len(zoo):
        psnr = zoo.all.column("psnr_db")
        info["psnr_db"] = {
            "mean": float(psnr.mean()),
            "min": float(psnr.min()),
            "max": float(psnr.max()),
        }
    if found := classifier_info(zoo):
        info["classifiers"] = found
    try:
        comparisons = compare_statistics(zoo)
    except UserError:
        comparisons = []
        zoo.all.select(slice(0, 1)).state_dicts()  # a zoo whose weights cannot be read must not pass unnoticed
    info["statistics"] = [
        {
            "tensor": row.tensor,
            "mean": row.ours.mean,
            "std": row.ours.std,
            "published_mean": row.published.mean,
            "published_std": row.published.std,
            "ratio": row.ratio,
            "within_10_percent": row.within,
        }
        for row in comparisons
    ]
    return info


def print_zoo_info(info: dict[str, Any], console: Console | None = None) -> None:
    """Print what ``zoo_info`` returned as tables."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    state = "" if info["complete"] else f" (unfinished: {info['planned_networks']} planned)"
    table = Table(title=f"{info['name']}{state}", show_header=False, title_justify="left")
    recipe, source = info["recipe"], info["source"]
    table.add_row("folder", info["path"])
    table.add_row("networks", f"{info['networks']:,} ({info['bytes'] / 1e6:.1f} MB)")
    table.add_row("splits", ", ".join(f"{count:,} {name}" for name, count in info["splits"].items()))
    if source.get("images"):
        size = f" {source['height']}x{source['width']}x{source['channels']}" if source.get("height") else ""
        note = f", {source['note']}" if source.get("note") else ""
        table.add_row("images", f"{source['images']}{size}{note}")
    if recipe.get("name"):
        details = f", Adam {recipe['lr']:g}, {recipe['steps']} steps" if "lr" in recipe else ""
        table.add_row("recipe", f"{recipe['name']}{details}")
    if "labels" in info:
        counts = list(info["labels"].values())
        table.add_row("classes", f"{len(counts)}, {min(counts):,} to {max(counts):,} networks each")
    if "psnr_db" in info:
        psnr = info["psnr_db"]
        table.add_row("PSNR", f"{psnr['mean']:.1f} dB ({psnr['min']:.1f} to {psnr['max']:.1f})")
    classifiers = info.get("classifiers")
    for name, content in summary_rows(classifiers) if classifiers else []:
        table.add_row(name, content)
    console.print(table)

    # The most frequent ones: a zoo may hold as many architectures as networks.
    kinds = sorted(info["architectures"], key=lambda row: -row["networks"])
    table = Table("id", "architecture", "parameters", "networks")
    for row in kinds[:MOST_ARCHITECTURES]:
        table.add_row(row["id"], row["architecture"], f"{row['parameters']:,}", f"{row['networks']:,}")
    if left := kinds[MOST_ARCHITECTURES:]:
        table.add_row("", f"and {len(left):,} others", "", f"{sum(row['networks'] for row in left):,}")
    console.print(table)
    if classifiers:
        print_classifiers(classifiers, console)

    if info["statistics"]:
        table = Table("tensor", "std", "published std", "ratio", "within 10 %")
        for row in info["statistics"]:
            table.add_row(
                row["tensor"],
                f"{row['std']:.5f}",
                f"{row['published_std']:.5f}",
                f"{row['ratio']:.3f}",
                "yes" if row["within_10_percent"] else "[red]no[/red]",
            )
        console.print(table)
