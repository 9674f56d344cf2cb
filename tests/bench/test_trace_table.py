"""The table of architectures, from rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neural_graphs.bench import row, tables, write_results
from neural_graphs.bench._results import Row
from neural_graphs.bench._trace_table import HEAD, lines, summary

FOUND: dict[str, Any] = {
    **{"set": "small", "parameters": 1234, "route": "export", "classes": 1, "group": "S8", "log10_order": 4.6},
    "frozen": {},
}


def rows(name: str, **found: Any) -> list[Row]:
    return [
        row(name, "seconds", 0.5, **{**FOUND, **found}),
        row(name, "memory_ratio", 1.02),
        row(name, "share_moved", 0.97),
        row(name, "relative_error", 3e-15),
        row(name, "relative_error_fp32", 5e-7),
        row(name, "control_error", 0.01, inert=["k.bias"]),
        row(name, "rescaling_error", 2e-15, kinds={"scale": 2, "sign": 1}, errors={"scale": 1e-15, "sign": 2e-15}),
    ]


def test_a_line_holds_all_that_was_measured() -> None:
    title, line = lines(rows("mlp", frozen={"aten.roll.default": 3}, route="make_fx"))
    assert title[0] == "**Small networks**" and len(title) == len(line) == len(HEAD)
    assert line == (
        *("mlp", "1,234", "0.50 s", "1.02x", "S8", "10^5", "97.0 %", "3.0e-15", "5.0e-07", "1.0e-02"),
        *("2 scale, 1 sign: 2.0e-15", "`aten.roll.default` 3×, by make_fx, 1 tensor without effect"),
    )


def test_what_was_not_measured_is_left_out() -> None:
    _, line = lines(rows("mlp")[:5])
    assert line[-3:] == ("–", "none", "")


def test_a_long_group_is_cut_at_a_factor() -> None:
    group = " × ".join(["S64", "S64^12", "(S8^2)^3"] * 4) + " × … (40 classes)"
    _, line = lines(rows("big", group=group, classes=40))
    assert line[4] == "S64 × S64^12 × (S8^2)^3 × S64 × S64^12 × … (40 classes)"
    _, line = lines(rows("big", group=" × ".join(["S4096"] * 12), classes=12))
    assert line[4] == " × ".join(["S4096"] * 6) + " × … (12 classes)"


def test_refusals_say_why() -> None:
    found = [*rows("a", set="vision"), row("b", "refused", 1.0, set="vision", parameters=7, reason="x | y"), *rows("c")]
    table = lines(found)
    assert [line[0] for line in table] == ["**Small networks**", "c", "**Vision (timm)**", "a", "b"]
    assert table[-1][1] == "7" and table[-1][-1] == "refused: x \\| y" and len(table[-1]) == len(HEAD)
    assert summary(found) == (
        "2 architectures traced, largest error 3.0e-15 in float64, largest error 5.0e-07 in float32, "
        "smallest control 1.0e-02; refused: b."
    )
    assert summary(rows("a")).endswith("; none refused.")


def test_the_page_has_one_line_per_architecture(tmp_path: Path) -> None:
    data = {"weights": "random", "seed": 0}
    write_results(tmp_path / "trace.json", "trace", "c", data, [*rows("a"), *rows("b")], threads=1)
    page = tables(tmp_path)
    assert page.count("| a |") == page.count("| b |") == 1 and "2 architectures traced" in page
    assert "| Architecture | Parameters |" in page and "## Symmetries of traced architectures" in page
    # what an architecture had before goes, all of it, when it is traced again
    refused = row("a", "refused", 1.0, set="small", parameters=7, reason="no")
    write_results(tmp_path / "trace.json", "trace", "c", data, [refused], threads=1, replaces=("method",))
    page = tables(tmp_path)
    assert "| refused: no |" in page and page.count("| a |") == page.count("| b |") == 1
