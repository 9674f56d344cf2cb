"""Scale, sign and phase: what multiplies neurons without the network noticing, found on the recorded operators."""

from neural_graphs.graph._rescale import _lookups as _lookups
from neural_graphs.graph._rescale import _moves as _moves
from neural_graphs.graph._rescale import _normalisation as _normalisation
from neural_graphs.graph._rescale import _pointwise as _pointwise
from neural_graphs.graph._rescale import _products as _products
from neural_graphs.graph._rescale import _recurrent as _recurrent
from neural_graphs.graph._rescale import _reductions as _reductions
from neural_graphs.graph._rescale._find import find_rescalings as find_rescalings
