"""The page of an evaluation: what it shows of predicted numbers and of classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neural_graphs.explore import render_evaluation
from neural_graphs.explore._eval_page import group_figures, group_networks, in_words
from neural_graphs.explore._plots import MOST_POINTS, draw_calibration, draw_histogram, draw_scatter, ticks
from neural_graphs.graph import Stack
from neural_graphs.tasks._ranking import calibration, coverage, kendall_tau, scores
from neural_graphs.zoo import Zoo, ZooWriter


def percent(value: float) -> str:
    return f"{value:.0%}"


def evaluation(n: int = 60, bias: float = 0.0, width: float = 0.1) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    true = generator.uniform(0.1, 0.6, n)
    predicted = true + 0.03 * generator.standard_normal(n) + bias
    lower, upper = predicted - width / 2, predicted + width / 2
    kinds = ["1-4k3x3-3 relu" if i % 2 else "1-4k3x3-3 tanh" for i in range(n)]
    return {
        **scores(true, predicted),
        **coverage(true, lower, upper),
        "calibration": calibration(true, predicted),
        "per_architecture": {},
        "network": list(range(100, 100 + n)),
        "true": true.tolist(),
        "predicted": predicted.tolist(),
        "lower": lower.tolist(),
        "upper": upper.tolist(),
        "novelty": [0.5] * n,
        "architectures": kinds,
        "target": "test_accuracy",
        "bounds": [0.0, 1.0],
        "n": n,
        "split": "test",
        "zoo": "zoos/cnns",
    }


def zoo_of(path: Path, found: dict[str, Any]) -> Zoo:
    """Its networks and 100 more, with hyper-parameters by which each can be told."""
    stack = Stack.mlp((2, 3, 2), "relu")
    numbers = np.arange(100 + found["n"])
    columns = {
        "network": numbers,
        "split": np.full(len(numbers), "test", dtype=object),
        "run": numbers * 7,
        "learning_rate": (numbers / 1000).astype(np.float32),
        "activation": np.where(numbers % 2, "relu", "tanh").astype(object),
        "images": np.full(len(numbers), "svhn-gs", dtype=object),
    }
    tensors = {name: torch.zeros(len(numbers), *shape) for name, shape in stack.parameter_shapes().items()}
    with ZooWriter(path, {"a0": stack}, {"name": "z", "source": {"images": "svhn-gs"}}) as writer:
        writer.append("a0", 0, tensors, columns)
        return writer.finish()


def test_page_of_predicted_numbers(tmp_path: Path) -> None:
    found = evaluation()
    page = render_evaluation(found, "runs/<mine>", zoo_of(tmp_path / "zoo", found), "zoos/other (cifar10-gs)")
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)|url\(|@import|<script", page)
    assert "runs/&lt;mine&gt; on 60 test networks" in page and "<mine>" not in page
    assert "trained on networks of zoos/other (cifar10-gs)" in page and "(svhn-gs)" in page
    assert f"{found['kendall_tau']:.3f}" in page and f"{found['r2']:.3f}" in page
    assert page.count('h0"/>') == 60 and page.count('class="interval"') == 60 and page.count('class="identity"') == 2
    assert page.count('class="points"') == 2 and page.count('class="bin"') == 10
    assert re.search(r"<span>relu</span>.*<span>tanh</span>", page)

    error = np.abs(np.subtract(found["predicted"], found["true"]))
    (rows,) = re.findall(r"Largest errors</h2>.*?<tbody>(.*?)</tbody>", page, re.S)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", rows)]
    worst = np.argsort(-error)[:15]
    assert [int(row[0]) for row in cells] == [100 + i for i in worst]
    first = int(worst[0])
    assert cells[0][1] == f"{found['true'][first]:.1%}" and cells[0][2] == f"{found['predicted'][first]:.1%}"
    assert cells[0][4] == str((100 + first) * 7) and cells[0][5] == f"{(100 + first) / 1000:.4g}"
    assert "svhn-gs" not in rows  # all networks share it, so it explains no error


def test_page_without_columns() -> None:
    found = evaluation() | {"architectures": ["1-4k3x3-3 relu"] * 60}
    page = render_evaluation(found, "run")
    assert page.count('class="points"') == 1 and "class=key" not in page


def test_groups() -> None:
    found = evaluation()
    kinds = np.array(["relu", "tanh", "sine"] * 20)
    by_activation = group_networks(found, {"activation": kinds})
    assert by_activation is not None and (by_activation.title, by_activation.names) == (
        "activation",
        ["relu", "sine", "tanh"],
    )
    true, predicted = np.array(found["true"]), np.array(found["predicted"])
    for row in group_figures(by_activation, true, predicted):
        mine = kinds == row["name"]
        assert row["n"] == 20 and row["kendall_tau"] == kendall_tau(true[mine], predicted[mine])
    by_architecture = group_networks(found, {})
    assert by_architecture is not None and by_architecture.title == "architecture"
    # As many architectures as networks: then by the number of layers.
    many = found | {
        "architectures": ["-".join(map(str, [1] + [i + 2] * (1 + i % 3) + [5])) + " relu" for i in range(60)]
    }
    by_depth = group_networks(many, {"activation": np.array([f"k{i}" for i in range(60)])})
    assert by_depth is not None and by_depth.names == ["2 layers", "3 layers", "4 layers"]
    assert by_depth.of.tolist() == [i % 3 for i in range(60)]
    lone = group_figures(by_depth.__class__("x", ["a", "b"], np.array([0, 1, 1])), true[:3], predicted[:3])
    assert lone[0]["kendall_tau"] is None and lone[0]["n"] == 1


def test_in_words() -> None:
    found = evaluation(200)
    text = " ".join(in_words(found | {"kendall_tau": 0.5}))
    assert "puts the better one first 75% of the time" in text
    assert f"off by {100 * found['mae']:.1f} points on average" in text
    assert "too" not in text and "unlike" not in text
    low = evaluation(200, bias=-0.1)
    assert f"too low by {100 * np.subtract(low['true'], low['predicted']).mean():.1f} points" in " ".join(in_words(low))
    assert "intervals are too narrow" in " ".join(in_words(evaluation(200, width=0.01)))
    assert "intervals are too wide" in " ".join(in_words(evaluation(200, width=1.0)))
    assert "20% of these networks are unlike" in " ".join(in_words(found | {"novelty": [2.0] * 40 + [0.1] * 160}))
    assert f"off by {found['mae']:.4g} on average" in " ".join(in_words(found | {"target": "test_loss"}))


def test_scatter_puts_points_where_they_belong() -> None:
    picture = draw_scatter(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "x", percent)
    (x0, y0), (x1, y1) = ((float(x), float(y)) for x, y in re.findall(r'd="M([\d.]+) ([\d.]+)h0"', picture))
    (line,) = re.findall(r'class="identity" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', picture)
    ax, ay, bx, by = map(float, line)
    for x, y in ((x0, y0), (x1, y1)):  # equal values lie on the line, and that runs from lower left to upper right
        assert (y - ay) / (by - ay) == pytest.approx((x - ax) / (bx - ax), abs=1e-3)
    assert x0 < x1 and y0 > y1
    above = draw_scatter(np.array([0.0, 1.0, 0.5]), np.array([0.0, 1.0, 0.9]), "x", percent)
    points = [(float(x), float(y)) for x, y in re.findall(r'd="M([\d.]+) ([\d.]+)h0"', above)]
    assert points[0][1] > points[2][1] > points[1][1] and points[2][0] == pytest.approx((x0 + x1) / 2, abs=0.2)


def test_scatter_of_many_networks_and_of_equal_ones() -> None:
    generator = np.random.default_rng(1)
    true = generator.random(MOST_POINTS + 500)
    assert draw_scatter(true, true, "x", percent).count('h0"/>') == MOST_POINTS
    assert draw_scatter(true, true, "x", percent) == draw_scatter(true, true, "x", percent)
    for value in (0.0, 0.3, -2e5):  # no range to draw in
        assert "nan" not in draw_scatter(np.full(3, value), np.full(3, value), "x", percent)
        assert draw_histogram(np.full(3, value), "x", percent).count('class="bar"') == 1


def test_histogram_counts_every_value() -> None:
    values = np.random.default_rng(2).standard_normal(500)
    picture = draw_histogram(values, "error", lambda value: f"{value:.2f}", mark=0.0)
    assert sum(map(int, re.findall(r"<title>(\d+) networks", picture))) == 500
    assert "stroke-dasharray" in picture and "stroke-dasharray" not in draw_histogram(
        values + 9, "e", percent, mark=0.0
    )


def test_calibration_points_grow_with_their_counts() -> None:
    picture = draw_calibration([0.1, 0.5], [0.2, 0.6], [1, 100], "x", percent)
    small, large = map(float, re.findall(r'class="bin"[^>]* r="([\d.]+)"', picture))
    assert small < large
    assert "1 networks: predicted 10%, true 20%" in picture


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.103, 0.137), (-7e3, 5e4), (-1e-6, 0)])
def test_ticks(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 8 and low - 1e-9 <= found[0] and found[-1] <= high + 1e-9


def test_page_of_classes() -> None:
    found = {
        "accuracy": 0.75,
        "loss": 0.6,
        "confusion": [[5, 1, 0], [0, 4, 3], [0, 0, 3]],
        "per_architecture": {
            "2-3-1": {"n": 9, "accuracy": 0.7, "seen": True},
            "2-4-1": {"n": 7, "accuracy": 0.8, "seen": False},
        },
        "class_names": ["low", "mid", "high"],
        "n": 16,
        "split": "test",
        "zoo": "z",
    }
    page = render_evaluation(found, "run")
    assert "Confusion matrix" in page and "75.0%" in page and "2-4-1" in page
    assert "mid taken for high, 3 of 7" in page and "44%" in page
    right = found | {"confusion": [[5, 0, 0], [0, 4, 0], [0, 0, 3]], "per_architecture": {}}
    assert "It makes no mistakes." in render_evaluation(right, "run")
