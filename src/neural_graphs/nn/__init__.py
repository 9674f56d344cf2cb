"""Encoders of neural graphs, and heads that read them."""

from neural_graphs.nn._combined import Combined as Combined
from neural_graphs.nn._delta import DeltaHead as DeltaHead
from neural_graphs.nn._delta import FlatDeltaHead as FlatDeltaHead
from neural_graphs.nn._delta import delta_head as delta_head
from neural_graphs.nn._encoder import Encoder as Encoder
from neural_graphs.nn._encoder import Encoding as Encoding
from neural_graphs.nn._encoder import Reads as Reads
from neural_graphs.nn._heads import GraphHead as GraphHead
from neural_graphs.nn._heads import NodeHead as NodeHead
from neural_graphs.nn._mlp import WeightMLP as WeightMLP
from neural_graphs.nn._ng_gnn import NGGNN as NGGNN
from neural_graphs.nn._ng_t import NGT as NGT
from neural_graphs.nn._normalization import Normalization as Normalization
from neural_graphs.nn._probes import ProbeFeatures as ProbeFeatures
from neural_graphs.nn._probing import Probing as Probing
from neural_graphs.nn._registry import create_encoder as create_encoder
from neural_graphs.nn._registry import list_encoders as list_encoders
from neural_graphs.nn._registry import register_encoder as register_encoder
from neural_graphs.nn._scale_gmn import ScaleGMN as ScaleGMN
from neural_graphs.nn._statnn import StatNN as StatNN
from neural_graphs.nn._statnn import statistics as statistics
