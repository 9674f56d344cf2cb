"""Measurements: benchmarks against textbook twins, experiments, and the tables that the docs show."""

from neural_graphs.bench._ablation import encoder_ablation as encoder_ablation
from neural_graphs.bench._ablation import option_ablation as option_ablation
from neural_graphs.bench._adapt import adaptation as adaptation
from neural_graphs.bench._bulk import bulk as bulk
from neural_graphs.bench._classification import inr_classification as inr_classification
from neural_graphs.bench._edit import editing as editing
from neural_graphs.bench._fit import fit as fit
from neural_graphs.bench._generalisation import generalisation as generalisation
from neural_graphs.bench._nowcast import nowcasting as nowcasting
from neural_graphs.bench._optimizer import learned_optimizers as learned_optimizers
from neural_graphs.bench._optimizer_step import optimizer_steps as optimizer_steps
from neural_graphs.bench._render import rendering as rendering
from neural_graphs.bench._results import read_results as read_results
from neural_graphs.bench._results import row as row
from neural_graphs.bench._results import write_results as write_results
from neural_graphs.bench._step import step as step
from neural_graphs.bench._tables import tables as tables
from neural_graphs.bench._tables import update_readme_table as update_readme_table
from neural_graphs.bench._tables import write_tables as write_tables
from neural_graphs.bench._trace import faults as faults
from neural_graphs.bench._trace import trace_architectures as trace_architectures
