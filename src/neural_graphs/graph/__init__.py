"""From networks to neural graphs: symmetry groups, node sets and dense blocks."""

from neural_graphs.graph._activation import Activation as Activation
from neural_graphs.graph._architecture import Architecture as Architecture
from neural_graphs.graph._architecture import ModuleArchitecture as ModuleArchitecture
from neural_graphs.graph._architecture import architecture_from_json as architecture_from_json
from neural_graphs.graph._architecture import register_architecture as register_architecture
from neural_graphs.graph._batch import GraphBatch as GraphBatch
from neural_graphs.graph._check import SymmetryReport as SymmetryReport
from neural_graphs.graph._graph import NeuralGraph as NeuralGraph
from neural_graphs.graph._layout import Layout as Layout
from neural_graphs.graph._packing import check_state_dict as check_state_dict
from neural_graphs.graph._plain import stack_from_shapes as stack_from_shapes
from neural_graphs.graph._rescaling import Rescaling as Rescaling
from neural_graphs.graph._rescaling import Term as Term
from neural_graphs.graph._spec import Axis as Axis
from neural_graphs.graph._spec import PermutationSpec as PermutationSpec
from neural_graphs.graph._stack import Layer as Layer
from neural_graphs.graph._stack import Stack as Stack
from neural_graphs.graph._stack_spec import spec_of_stack as spec_of_stack
from neural_graphs.graph._structure import BLOCK_KINDS as BLOCK_KINDS
from neural_graphs.graph._structure import Block as Block
from neural_graphs.graph._structure import GraphSpec as GraphSpec
from neural_graphs.graph._structure import NodeFeature as NodeFeature
from neural_graphs.graph._structure import NodeSet as NodeSet
from neural_graphs.graph._trace import Trace as Trace
from neural_graphs.graph._trace import trace as trace
