"""What each ATen operator says about the axes of its operands: one small rule per operator, registered by name.

A rule gets a ``Call`` and returns the axes (``list[Space]``) of the operator's result, or a list of such for several
results; on the way it unifies, splits or freezes the axes of the operands. ``Unsupported`` means: freeze all that the
operator touches, and report it. In-place variants (``add_``) share the rule of the plain operator.
"""

from neural_graphs.graph._rules import _attention as _attention
from neural_graphs.graph._rules import _contraction as _contraction
from neural_graphs.graph._rules import _elementwise as _elementwise
from neural_graphs.graph._rules import _indexing as _indexing
from neural_graphs.graph._rules import _normalisation as _normalisation
from neural_graphs.graph._rules import _recurrent as _recurrent
from neural_graphs.graph._rules import _reduction as _reduction
from neural_graphs.graph._rules import _shape as _shape
from neural_graphs.graph._rules import _spatial as _spatial
from neural_graphs.graph._rules._registry import RULES as RULES
from neural_graphs.graph._rules._registry import Axes as Axes
from neural_graphs.graph._rules._registry import Call as Call
from neural_graphs.graph._rules._registry import Unsupported as Unsupported
from neural_graphs.graph._rules._registry import rule_name as rule_name
