"""How much a map depends on the class: cosines between maps of a VGG11 with random weights.

Imports pyrevgrad's public names. A map that explains a class differs from another class's map.
"""

import itertools

import torch
from torch import nn

import pyrevgrad
from pyrevgrad import DECONVNET, EXACT, GUIDED

WIDTHS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
CLASSES = (0, 100, 200, 300, 400)


def convolution(channels, width):
    layer = nn.Conv2d(channels, width, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def linear(width, features):
    layer = nn.Linear(width, features)
    nn.init.normal_(layer.weight, 0, 0.01)
    nn.init.zeros_(layer.bias)
    return layer


def vgg11():
    """The network of Simonyan & Zisserman 2015, configuration A, as it is before training."""
    layers, channels = [], 3
    for width in WIDTHS:
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [convolution(channels, width), pyrevgrad.nn.Activation("relu")]
            channels = width
    layers += [nn.Flatten(), linear(512 * 7 * 7, 4096), pyrevgrad.nn.Activation("relu")]
    layers += [linear(4096, 4096), pyrevgrad.nn.Activation("relu"), linear(4096, 1000)]
    return nn.Sequential(*layers)


def cosines(network, image, rule):
    """The cosine between the maps of each two of CLASSES."""
    for layer in network:
        if isinstance(layer, pyrevgrad.nn.Activation):
            layer.rule = rule
    logits = network(image)[0]
    maps = [torch.autograd.grad(logits[k], image, retain_graph=True)[0] for k in CLASSES]
    pairs = itertools.combinations([found.flatten() for found in maps], 2)
    return [torch.cosine_similarity(a, b, dim=0).item() for a, b in pairs]


def main():
    torch.manual_seed(0)
    network, image = vgg11(), torch.randn(1, 3, 224, 224, requires_grad=True)
    print(f"{'rule':10}   mean   lowest   highest")
    for rule in (EXACT, GUIDED, DECONVNET):
        found = cosines(network, image, rule)
        print(f"{rule!r:10} {sum(found) / len(found):6.3f}   {min(found):6.3f}   {max(found):6.3f}")


if __name__ == "__main__":
    main()
