"""Autoencoders of six features whose weights are those of a polygon."""

import torch

from datasets.objectives import Reconstruction
from datasets.task import Examples, Preprocess, StreamSpec, Table, Task
from evaluation.landscape import polygon_weights, polygons
from evaluation.subject import Subject
from net import build_net, settings_class
from net.autoencoder import Autoencoder
from tests.toys import CPU

VALUES = 160  # of each feature


def at_polygon(name: str, shift: float = 0.0) -> Subject:
    """An autoencoder at a polygon such as "5-gon+", all parameters shifted; the values of features are a grid."""
    polygon = next(polygon for polygon in polygons(6) if polygon.name == name)
    net = build_net("autoencoder", (6,), settings_class("autoencoder")(), {1: 6}, "identity").eval()
    dead = -1.0 if polygon.dead_bias == "negative" else 1 / 12
    vectors, biases = polygon_weights(polygon.k, 6, polygon.length, polygon.bias, dead)
    assert isinstance(net.trunk, Autoencoder)
    with torch.no_grad():
        net.trunk.encoder.copy_(vectors + shift)
        assert net.trunk.bias is not None
        net.trunk.bias.copy_(biases + shift)
    values = (torch.arange(VALUES) + 0.5) / VALUES
    inputs = torch.block_diag(*[values.unsqueeze(1)] * 6)
    targets = torch.stack([inputs, torch.ones_like(inputs)], 1)
    examples = Examples(inputs, torch.arange(len(inputs)), targets)
    task = Task(1, "toy", 6, Table(examples), {"train": examples, "test": examples})
    return Subject(net, task, StreamSpec("toy", (6,), Reconstruction(), Preprocess(), heads="identity"), CPU)
