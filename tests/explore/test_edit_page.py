"""The page of an editor: its table, sentences, curves, and a gallery that stays small."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neural_graphs.explore import _edit_page, render_evaluation
from neural_graphs.explore._edit_page import MOST_BYTES, draw_curve, in_words, rows_of, seconds_in_words


def report(
    edits: tuple[str, ...] = ("dilate",),
    share: int = 2,
    size: int = 6,
    colours: int = 1,
    refit: bool = True,
    reach: bool = True,
) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    per_edit: dict[str, Any] = {}
    gallery: dict[str, Any] = {}
    for number, edit in enumerate(edits):
        figures = {"mse": 0.02 + 0.01 * number, "psnr": 17.25, "ssim": 0.8125}
        left = {"mse": 0.08, "psnr": 11.0, "ssim": 0.5}
        fitted = {"mse": 0.015, "psnr": 18.5, "ssim": 0.75, "steps": 17, "lr": 1e-3, "seconds": 0.0058, "n": 3}
        fitted["editor_mse"] = figures["mse"]
        reached = {"steps": 12, "seconds": 0.0041, "lr": 1e-3}
        per_edit[edit] = {
            **figures,
            "no_edit": left,
            "refit": fitted if refit else None,
            "reach": reached if refit and reach else None,
        }
        shapes = {"before": size, "target": size, "after": size, "finer": 4 * size, "refit": size}
        images = {
            key: generator.random((3 * share, side, side, colours), dtype=np.float32) for key, side in shapes.items()
        }
        gallery[edit] = {
            "network": list(range(100, 100 + 3 * share)),
            "kind": [kind for kind in ("best", "median", "worst") for _ in range(share)],
            "mse": [0.01 * (1 + k) for k in range(3 * share)],
            **images,
            "curve": [(0.0003 * k, 0.08 / (1 + k)) for k in range(65)] if refit else [],
        }
        if not refit:
            gallery[edit]["refit"] = None
    return {
        "mse": 0.02,
        "psnr": 17.25,
        "ssim": 0.8125,
        "no_edit_mse": 0.08,
        "seconds_per_network": 0.0057,
        "per_edit": per_edit,
        "per_architecture": {
            "2-8-1 sine:30": {"mse": 0.02, "psnr": 17.25, "ssim": 0.8125, "n": 3, "seen": True},
            "2-9-1 sine:30": {"mse": 0.055, "psnr": 12.5, "ssim": 0.625, "n": 3, "seen": False},
        },
        "gallery": gallery,
        "task": "edit",
        "edits": list(edits),
        "n": 6,
        "split": "test",
        "zoo": "zoos/inrs",
    }


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_page() -> None:
    found = report()
    page = render_evaluation(found, "runs/<mine>")
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)|url\(|@import|<script", page)
    assert "runs/&lt;mine&gt; on 6 test networks of zoos/inrs" in page and "<mine>" not in page
    assert "prefers-color-scheme:dark" in page and "image-rendering:pixelated" in page
    entry, images = found["gallery"]["dilate"], pictures(page)
    assert len(images) == 6 * 5
    for place in range(6):
        row = images[5 * place : 5 * place + 5]
        for image, key in zip(row, ("before", "target", "after", "refit", "finer"), strict=True):
            assert np.array_equal(image, np.rint(255 * entry[key][place, ..., 0]).astype(np.uint8))
    assert re.findall(r"<b>(\w+)</b><br>network (\d+)<br>mse ([\d.]+)e-2", page) == [
        (kind, str(number), f"{100 * error:.3g}")
        for kind, number, error in zip(entry["kind"], entry["network"], entry["mse"], strict=True)
    ]
    assert re.search(r"2-9-1 sine:30</td>.*5\.5</td>.*12\.50</td>.*0\.625</td>.*no</td>", page)


def test_page_without_refitting_and_in_colour() -> None:
    found = report(("invert", "blur"), share=1, colours=3, refit=False)
    page = render_evaluation(found, "run")
    images = pictures(page)
    assert len(images) == 2 * 3 * 4
    assert np.array_equal(images[3], np.rint(255 * found["gallery"]["invert"]["finer"][0]).astype(np.uint8))
    assert "refit" not in page.lower() and "Error against time" not in page
    assert page.count('style="--images:4"') == 2


def test_lines_of_the_table() -> None:
    assert rows_of(report()) == [
        ["dilate", "editor", "2", "17.25", "0.812", "5.7 ms"],
        ["", "no edit", "8", "11.00", "0.500", ""],
        ["", "refit, for as long: 17 steps", "1.5", "18.50", "0.750", "5.8 ms"],
        ["", "refit, until as good: 12 steps", "2", "", "", "4.1 ms"],
    ]
    assert rows_of(report(reach=False))[-1] == ["", "refit, until as good: more than 1,000 steps", "", "", "", ""]
    assert [row[:2] for row in rows_of(report(("a", "b"), refit=False))] == [
        ["a", "editor"],
        ["", "no edit"],
        ["b", "editor"],
        ["", "no edit"],
    ]


def test_sentences() -> None:
    words = " ".join(in_words(report()))
    assert "with 25% of the error" in words
    assert "is better: it has 0.75 times the error." in words and "It needs 0.72 times as long" in words
    worse = report()
    worse["mse"] = 0.09
    worse["per_edit"]["dilate"]["refit"]["mse"] = 0.05
    words = " ".join(in_words(worse))
    assert "further from the edited images" in words and "is worse: it has 2.5 times the error." in words
    two = report(("a", "b"))
    two["per_edit"]["a"]["refit"]["mse"] = 0.05
    assert "(the editor wins 1 of 2 edits)" in " ".join(in_words(two))


def test_curve_and_the_editors_point() -> None:
    curve = np.array([(0.001 * k, 0.08 / (1 + k)) for k in range(65)])
    picture = draw_curve("dilate", curve, seconds=0.004, error=0.02)
    places = [
        tuple(map(float, pair.split())) for pair in re.findall(r'd="M([^"]+)" fill="none"', picture)[0].split("L")
    ]
    ((x, y),) = re.findall(r'class="editor" cx="([\d.]+)" cy="([\d.]+)"', picture)
    # After three steps of 1 ms fitting is as good: the point is as high as the curve there, and further right.
    assert places[3][1] == pytest.approx(float(y), abs=0.2) and places[4][0] == pytest.approx(float(x), abs=0.2)
    assert len(places) == 6  # a little beyond the editor's time
    wild = curve.copy()
    wild[1:3, 1] = 9.0, np.inf
    assert "inf" not in draw_curve("dilate", wild, 0.004, 0.02) and "nan" not in draw_curve("dilate", wild, 9.0, 0.02)


def test_a_large_gallery_shows_fewer_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(("a", "b"), share=4, size=16)
    whole = render_evaluation(found, "run")
    assert len(pictures(whole)) == 2 * 12 * 5 and len(whole) < MOST_BYTES
    monkeypatch.setattr(_edit_page, "MOST_BYTES", len(whole) * 2 // 3)
    page = render_evaluation(found, "run")
    assert len(page) < len(whole) * 3 // 4
    assert len(pictures(page)) == 2 * 6 * 5
    assert re.findall(r"<b>(\w+)</b><br>network (\d+)", page)[:6] == [
        ("best", "100"),
        ("best", "101"),
        ("median", "104"),
        ("median", "105"),
        ("worst", "108"),
        ("worst", "109"),
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0000123, "0.0123 ms"), (0.0057, "5.7 ms"), (0.25, "250 ms"), (1.2345, "1.23 s")]
)
def test_times(seconds: float, words: str) -> None:
    assert seconds_in_words(seconds) == words
