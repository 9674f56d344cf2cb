"""The command `neural-graphs`: one module per verb. Nothing here imports torch or numpy before a verb runs."""

from neural_graphs.cli._main import main as main
