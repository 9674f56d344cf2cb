"""Measurements: benchmarks against textbook twins, experiments, and the tables that the docs show."""

from neural_graphs.bench._results import read_results as read_results
from neural_graphs.bench._results import row as row
from neural_graphs.bench._results import write_results as write_results
from neural_graphs.bench._step import step as step
