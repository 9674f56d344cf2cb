"""Which neurons a recorded graph has, and what acts between them: the way from a capture to node sets and blocks.

_labels       which neuron each entry of a value belongs to
_sites        the ledger: neurons, uses of parameters, joins
_reader       the walk over the graph; rules in _pointwise, _moves, _products, _layers
_pieces       the ledger's neurons as node sets
_digits       an index pattern as a Layout
_placement    the ledger's uses as blocks and node features
"""

from neural_graphs.graph._neurons import _layers as _layers
from neural_graphs.graph._neurons import _moves as _moves
from neural_graphs.graph._neurons import _pointwise as _pointwise
from neural_graphs.graph._neurons import _products as _products
from neural_graphs.graph._neurons._pieces import Sets as Sets
from neural_graphs.graph._neurons._pieces import join_queries_and_keys as join_queries_and_keys
from neural_graphs.graph._neurons._pieces import make_sets as make_sets
from neural_graphs.graph._neurons._placement import Placement as Placement
from neural_graphs.graph._neurons._reader import Reader as Reader
from neural_graphs.graph._neurons._sites import Join as Join
from neural_graphs.graph._neurons._sites import Ledger as Ledger
