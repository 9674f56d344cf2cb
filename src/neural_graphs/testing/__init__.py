"""Hold your own models to their symmetries: random networks, and assertions of invariance and equivariance.

    from neural_graphs.testing import assert_invariant, random_graph, random_stack
    assert_invariant(model, random_graph(random_stack(seed=0), batch=4))

``assert_symmetries`` holds the tracer to the symmetries that it finds in a module of yours, and ``random_module`` draws
modules that are no plain stacks:

    assert_symmetries(*random_module(seed=0))

Every assertion permutes each network of the batch by its own random group element, compares what the model says before
and after, and has a negative control, so that it cannot pass because the model looks at nothing. Errors are the largest
absolute difference relative to the largest absolute value; the tolerance is ``TOLERANCE[dtype]``: 1e-10 in float64, where
only a wrong model fails, and 2e-5 in float32, where the order of summation shows.
"""

from neural_graphs.testing._assertions import TOLERANCE as TOLERANCE
from neural_graphs.testing._assertions import assert_equivariant as assert_equivariant
from neural_graphs.testing._assertions import assert_invariant as assert_invariant
from neural_graphs.testing._modules import random_module as random_module
from neural_graphs.testing._stacks import random_graph as random_graph
from neural_graphs.testing._stacks import random_inputs as random_inputs
from neural_graphs.testing._stacks import random_stack as random_stack
from neural_graphs.testing._symmetries import assert_symmetries as assert_symmetries
