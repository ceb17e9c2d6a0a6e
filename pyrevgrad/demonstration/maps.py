"""Input gradients of the trained classifier under three rules, and how much they depend on it.

May import torch, the public functions and layers, and the demo's training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyrevgrad import DECONVNET, EXACT, GUIDED, Rule

from .training import CLASSES, build_classifier

RULES: dict[str, Rule] = {"EXACT": EXACT, "GUIDED": GUIDED, "DECONVNET": DECONVNET}


@dataclass(frozen=True)
class Maps:
    """One row per digit: the image, its class, the predicted one, and the gradient per rule."""

    images: torch.Tensor
    labels: torch.Tensor
    predicted: torch.Tensor
    gradients: dict[str, torch.Tensor]
    #: Mean cosine between the maps of two different classes on the same image, per rule.
    class_cosines: dict[str, float]
    #: Mean cosine between the predicted class's map and the image itself, per rule.
    image_cosines: dict[str, float]


def with_rule(classifier: torch.nn.Module, rule: Rule) -> torch.nn.Sequential:
    """The classifier's weights in a network whose activations carry `rule`: same values."""
    other = build_classifier(rule)
    other.load_state_dict(classifier.state_dict())
    return other


def input_gradient(
    classifier: torch.nn.Module, rule: Rule, images: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """The gradient of each image's logit of its class with respect to its pixels, under `rule`.

    Parameters
    ----------
    classifier : torch.nn.Module
        Built by `build_classifier`, with any rule.
    rule : Rule
        What the activations send back.
    images : torch.Tensor
        (n, 8, 8).
    classes : torch.Tensor
        (n,), int64.

    Returns
    -------
    torch.Tensor
        (n, 8, 8), logits per unit of pixel.
    """
    pixels = images.flatten(1).detach().requires_grad_()
    logits = with_rule(classifier, rule)(pixels)
    chosen = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, pixels)
    return gradient.reshape(images.shape)


def class_cosine(classifier: torch.nn.Module, rule: Rule, images: torch.Tensor) -> float:
    """Mean cosine, over images and pairs of classes, between the maps of two classes.

    Near 1 the map hardly depends on the class it is meant to explain. An image whose map is zero
    for some class counts as 0 in the pairs of that class.
    """
    per_class = torch.stack(
        [
            input_gradient(classifier, rule, images, torch.full((len(images),), chosen))
            for chosen in range(CLASSES)
        ],
        dim=1,
    ).flatten(2)
    unit = torch.nn.functional.normalize(per_class.double(), dim=2)
    cosines = unit @ unit.transpose(1, 2)
    first, second = torch.triu_indices(CLASSES, CLASSES, offset=1)
    return cosines[:, first, second].mean().item()


def draw_from(classifier: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Maps:
    """Maps of the first image of each class that the classifier gets right, first if none.

    The class explained is the predicted one.
    """
    with torch.no_grad():
        predicted = classifier(images.flatten(1)).argmax(1)
    rows = []
    for digit in range(CLASSES):
        of_class = labels == digit
        right = (of_class & (predicted == labels)).nonzero().flatten()
        rows.append((right if len(right) else of_class.nonzero().flatten())[0])
    chosen = torch.stack(rows)
    return Maps(
        images[chosen],
        labels[chosen],
        predicted[chosen],
        {
            name: input_gradient(classifier, rule, images[chosen], predicted[chosen])
            for name, rule in RULES.items()
        },
        {name: class_cosine(classifier, rule, images) for name, rule in RULES.items()},
        {
            name: torch.cosine_similarity(
                input_gradient(classifier, rule, images, predicted).flatten(1),
                images.flatten(1),
            )
            .mean()
            .item()
            for name, rule in RULES.items()
        },
    )
