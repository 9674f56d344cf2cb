"""Collections of networks: images, bulk fitting, storage, import."""

from __future__ import annotations

from neural_graphs.zoo._imports import import_zoo as import_zoo
from neural_graphs.zoo._info import print_zoo_info as print_zoo_info
from neural_graphs.zoo._info import zoo_info as zoo_info
from neural_graphs.zoo._inr import FitOptions as FitOptions
from neural_graphs.zoo._inr import fit_networks as fit_networks
from neural_graphs.zoo._make import make_zoo as make_zoo
from neural_graphs.zoo._make_classifiers import make_cnn_zoo as make_cnn_zoo
from neural_graphs.zoo._recipes import RECIPES as RECIPES
from neural_graphs.zoo._recipes import Recipe as Recipe
from neural_graphs.zoo._render import contact_sheet as contact_sheet
from neural_graphs.zoo._render import render as render
from neural_graphs.zoo._statistics import compare_statistics as compare_statistics
from neural_graphs.zoo._statistics import layer_statistics as layer_statistics
from neural_graphs.zoo._statistics import published_statistics as published_statistics
from neural_graphs.zoo._store import Zoo as Zoo
from neural_graphs.zoo._store import ZooSplit as ZooSplit
from neural_graphs.zoo._writer import ZooWriter as ZooWriter
from neural_graphs.zoo.images import ImageSet as ImageSet
from neural_graphs.zoo.images import load_images as load_images
