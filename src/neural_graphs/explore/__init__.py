"""Looking at networks and at runs: drawings, reports, the quickstart."""

from neural_graphs.explore._describe import describe_graph as describe_graph
from neural_graphs.explore._eval_page import render_evaluation as render_evaluation
from neural_graphs.explore._eval_page import save_evaluation as save_evaluation
from neural_graphs.explore._figure import save_drawing as save_drawing
from neural_graphs.explore._graph_page import render_graph_page as render_graph_page
from neural_graphs.explore._model_file import LoadedModel as LoadedModel
from neural_graphs.explore._model_file import describes_itself as describes_itself
from neural_graphs.explore._model_file import load_model as load_model
from neural_graphs.explore._network_file import load_network as load_network
from neural_graphs.explore._network_file import save_network as save_network
from neural_graphs.explore._quickstart import Outcome as Outcome
from neural_graphs.explore._quickstart import Settings as Settings
from neural_graphs.explore._quickstart import next_commands as next_commands
from neural_graphs.explore._quickstart import quickstart as quickstart
from neural_graphs.explore._report import Report as Report
from neural_graphs.explore._report import render_report as render_report
