from __future__ import annotations

import io
import sys

import pytest

from neural_graphs import _progress
from neural_graphs._progress import progress, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEURAL_GRAPHS_NO_PROGRESS", raising=False)


def clock(monkeypatch: pytest.MonkeyPatch, seconds_per_look: float) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(ticks) * seconds_per_look)


def test_track_yields_everything() -> None:
    assert list(track(range(5), "count")) == [0, 1, 2, 3, 4]
    assert list(track((i for i in "ab"), "letters")) == ["a", "b"]


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    list(track(range(5), "count"))
    assert capsys.readouterr() == ("", "")


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 6.0)
    list(track(range(4), "fitting"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "fitting: 2/4 (50%), 0:00:12 left, 0:00:12 elapsed",
        "fitting: 4/4 (100%), 0:00:00 left, 0:00:24 elapsed",
        "fitting: done in 0:00:30",
    ]


def test_unknown_total(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 11.0)
    with progress("reading") as bar:
        bar.advance(3)
    assert capsys.readouterr().err.splitlines()[0] == "reading: 3, 0:00:11 elapsed"


def test_silenced(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 11.0)
    monkeypatch.setenv("NEURAL_GRAPHS_NO_PROGRESS", "1")
    assert list(track(range(3), "count")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_nested_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress("outer", 2) as bar:
        bar.describe("renamed")
        for _ in range(2):
            assert list(track(range(3), "inner")) == [0, 1, 2]
            bar.advance()
    assert "renamed" in screen.getvalue() and "2/2" in screen.getvalue()
    assert _progress._live is None, "a later bar starts its own screen"


def test_error_inside_leaves_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyError), progress("outer", 2):
        raise KeyError
    assert _progress._live is None
