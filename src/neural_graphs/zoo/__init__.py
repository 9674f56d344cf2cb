"""Collections of networks: images, bulk fitting, storage, import."""

from __future__ import annotations

from neural_graphs.zoo._inr import FitOptions as FitOptions
from neural_graphs.zoo._inr import fit_networks as fit_networks
from neural_graphs.zoo._make import make_zoo as make_zoo
from neural_graphs.zoo._recipes import RECIPES as RECIPES
from neural_graphs.zoo._recipes import Recipe as Recipe
from neural_graphs.zoo._store import Zoo as Zoo
from neural_graphs.zoo._store import ZooSplit as ZooSplit
from neural_graphs.zoo._writer import ZooWriter as ZooWriter
