"""The seed programs, items 1 to 6: each runs, and does what its formula says."""

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pyrevgrad import (
    DECONVNET,
    GUIDED,
    SwapError,
    assert_overridden,
    reverse_gradient,
    swap,
)
from pyrevgrad.activations import ACTIVATIONS
from pyrevgrad.attribution import jacobian
from pyrevgrad.nn import Activation, GradientReversal
from pyrevgrad.reference import gates
from pyrevgrad.reference.circuits import adversarial_gradients, adversarial_parameters

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PAGES = {
    "reverse_gradient": "backward [-0.5, -0.5, -0.5]",
    "adversarial_network": "step 200",
    "modified_backprop": "ZeilerBackprop",
    "guided_jacobian": "(64, 20, 32)",
    "runtime_network": "step 200",
}


def page(name):
    """The example called `name` as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng([seed, *shape]).standard_normal(shape))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs_and_prints_its_result(name, capsys):
    page(name).main()
    printed = capsys.readouterr().out
    assert PAGES[name] in printed and len(printed.splitlines()) >= 3


# 1 and 2. ReverseGradient and its layer.


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_reverse_gradient_is_a_view_forward_and_minus_lambda_g_backward(scale):
    x, g = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1)
    for call in (lambda at: reverse_gradient(at, scale), GradientReversal(scale)):
        y = call(x)
        assert torch.equal(y, x) and y.data_ptr() == x.data_ptr()
        assert torch.equal(torch.autograd.grad(y, x, g)[0], -scale * g)


def test_the_layer_turns_the_gradients_before_it_and_no_others():
    plain, turned = page("reverse_gradient").as_a_layer(0.5)
    torch.testing.assert_close(turned, -0.5 * plain)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), GradientReversal(0.5), nn.Linear(3, 1))
    model(torch.ones(1, 2)).sum().backward()
    with torch.no_grad():
        hidden = model[0](torch.ones(1, 2))
    torch.testing.assert_close(model[2].weight.grad, hidden)
    torch.testing.assert_close(model[0].bias.grad, -0.5 * model[2].weight[0])


# 3. The generic adversarial network, against the NumPy oracle.


def load(network, parameters):
    """Copy the oracle's (W (in, out), b) into the network's linear layers."""
    with torch.no_grad():
        for part, layers in parameters.items():
            linear = [layer for layer in getattr(network, part) if isinstance(layer, nn.Linear)]
            for layer, (W, b) in zip(linear, layers, strict=True):
                layer.weight.copy_(torch.from_numpy(W).T)
                layer.bias.copy_(torch.from_numpy(b))


def read(network, part):
    linear = [layer for layer in getattr(network, part) if isinstance(layer, nn.Linear)]
    return [(layer.weight.detach().T.numpy(), layer.bias.detach().numpy()) for layer in linear]


@pytest.mark.parametrize("scale", [0.5, 0.0, 2.0])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"inputs": 5, "features": (6,), "label_head": (3,), "domain_head": (1,)},
        {"inputs": 3, "features": (4, 4, 4), "label_head": (5, 6, 7), "domain_head": (4, 4, 1)},
    ],
    ids=["as published", "shallow", "deep"],
)
def test_every_parameter_takes_the_oracles_steps(sizes, scale):
    network = page("adversarial_network").AdversarialNetwork(scale=scale, **sizes).double()
    parameters = adversarial_parameters(**sizes)
    load(network, parameters)
    inputs = sizes.get("inputs", 2)
    source, target = drawn(9, inputs), drawn(10, inputs, seed=1)
    labels = torch.arange(9) % sizes.get("label_head", (8,))[-1]
    rate = 0.01
    for _ in range(5):
        wanted, gradients = adversarial_gradients(
            parameters, source.numpy(), labels.numpy(), target.numpy(), scale=scale
        )
        assert network.step(source, labels, target, rate=rate) == pytest.approx(wanted, rel=1e-12)
        parameters = {
            part: [
                (W - rate * gW, b - rate * gb)
                for (W, b), (gW, gb) in zip(layers, gradients[part], strict=True)
            ]
            for part, layers in parameters.items()
        }
        for part, layers in parameters.items():
            for mine, oracles in zip(read(network, part), layers, strict=True):
                for ours, theirs in zip(mine, oracles, strict=True):
                    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


def test_the_published_sizes_are_the_networks_own():
    network = page("adversarial_network").AdversarialNetwork()
    shapes = [tuple(p.shape) for name, p in network.named_parameters() if "weight" in name]
    assert shapes == [(3, 2), (4, 3), (7, 4), (8, 7), (5, 4), (6, 5)]
    assert network.reversal.scale.item() == 0.5


# 4. ModifiedBackprop, GuidedBackprop, ZeilerBackprop.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_guided_and_zeiler_backprop_are_their_formulas_in_every_tensor_type(dtype):
    module = page("modified_backprop")
    x = torch.tensor([-2.0, -2.0, 0.0, 3.0, 3.0, 0.5], dtype=dtype)
    g = torch.tensor([-1.0, 1.0, 1.0, -1.0, 1.0, 0.0], dtype=dtype)
    guided = module.modified("relu", module.GUIDED_BACKPROP)
    zeiler = module.modified("relu", module.ZEILER_BACKPROP)
    back = module.gradient_through(guided, x, g)
    assert back.dtype == dtype
    assert torch.equal(back, g * (x > 0) * (g > 0))
    assert torch.equal(module.gradient_through(zeiler, x, g), g * (g > 0))
    for layer in (guided, zeiler):
        assert torch.equal(layer(x), torch.relu(x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_modified_nonlinearity_keeps_its_value(name):
    module = page("modified_backprop")
    x, g = drawn(64), drawn(64, seed=1)
    for rule in (GUIDED, DECONVNET, module.OWN):
        assert torch.equal(module.modified(name, rule)(x), Activation(name)(x))
    back = module.gradient_through(module.modified(name, GUIDED), x, g)
    assert torch.equal(back, torch.where((x > 0) & (g > 0), g, 0.0))


def test_guided_relu_is_the_gate_of_the_numpy_oracle():
    module, gate = page("modified_backprop"), gates.GuidedRelu()
    x, g = drawn(100), drawn(100, seed=1)
    np.testing.assert_array_equal(module.modified("relu", GUIDED)(x), gate.forward(x.numpy()))
    back = module.gradient_through(module.modified("relu", GUIDED), x, g)
    np.testing.assert_array_equal(back, gate.backward(g.numpy())[0])


# 5. The Jacobian of one output column under guided backpropagation.


def by_hand(model, x, column):
    """Guided backpropagation through the page's network, step by step, without autograd."""
    with torch.no_grad():
        a = model.convolution(x)
        b = model.first(torch.relu(a).flatten(1))
        g = model.last.weight[column].expand(len(x), -1)
        g = torch.where((b > 0) & (g > 0), g, 0.0) @ model.first.weight
        g = g.reshape(a.shape)
        g = torch.where((a > 0) & (g > 0), g, 0.0)
        return nn.functional.conv_transpose1d(g, model.convolution.weight, padding=1)


@pytest.mark.parametrize("column", [0, 3])
def test_the_guided_jacobian_of_a_column_is_the_one_by_hand(column):
    module = page("guided_jacobian")
    model, x = module.Network().double(), drawn(64, 20, 32)
    plain = module.column_jacobian(model, x, column)
    with swap(model, GUIDED) as swapped:
        found = module.column_jacobian(model, x, column)
    assert found.shape == (64, 20, 32)
    torch.testing.assert_close(found, by_hand(model, x, column))
    torch.testing.assert_close(jacobian(model, x, column, rule=GUIDED), found)
    assert not torch.equal(found, plain)
    assert torch.equal(module.column_jacobian(model, x, column), plain)
    assert [(site.path, site.backward) for site in swapped.report.replaced] == [
        ("relu", 1),
        ("", 1),
    ]


def test_the_guided_jacobian_of_every_column_is_one_call():
    module = page("guided_jacobian")
    model, x = module.Network().double(), drawn(64, 20, 32)
    found = jacobian(model, x, rule=GUIDED)
    for column in range(5):
        torch.testing.assert_close(found[:, column], by_hand(model, x, column))


def test_an_override_that_is_never_called_raises():
    module = page("guided_jacobian")
    model, x = module.Network(), drawn(64, 20, 32).float()
    with pytest.raises(SwapError, match="replaced no activation of Network"):
        jacobian(model, x, 3, rule=GUIDED, where=nn.Tanh)
    assert_overridden(model, GUIDED, x)


# 6. A network built at run time.


@pytest.mark.parametrize("hidden", [(8, 6, 4, 8, 16), (5,), ()])
def test_a_network_built_from_a_list_of_sizes_trains_as_written_out_in_numpy(hidden):
    module = page("runtime_network")
    torch.manual_seed(0)
    model = module.build(hidden).double()
    shapes = [tuple(p.shape) for p in model.parameters() if p.dim() == 2]
    sizes = [10, *hidden, 32]
    assert shapes == [(after, before) for before, after in itertools.pairwise(sizes)]
    x, labels = drawn(20, 10), torch.arange(20) % 32
    layers = [
        [layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()]
        for layer in model
        if isinstance(layer, nn.Linear)
    ]
    for _ in range(4):
        wanted = _numpy_step(layers, x.numpy(), labels.numpy())
        assert module.step(model, x, labels) == pytest.approx(wanted, rel=1e-12)
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    for layer, (W, b) in zip(linear, layers, strict=True):
        np.testing.assert_allclose(layer.weight.detach(), W, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(layer.bias.detach(), b, rtol=1e-11, atol=1e-13)


def _numpy_step(layers, x, labels, penalty=0.1, rate=0.01):
    """One step of tanh layers, softmax cross-entropy, penalty·Σw² + Σb²; the loss before it."""
    outputs = [x]
    for i, (W, b) in enumerate(layers):
        z = outputs[-1] @ W.T + b
        outputs.append(z if i == len(layers) - 1 else np.tanh(z))
    shifted = outputs[-1] - outputs[-1].max(axis=1, keepdims=True)
    softmax = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    rows = np.arange(len(x))
    loss = -np.log(softmax[rows, labels]).mean()
    loss += sum(penalty * (W**2).sum() + (b**2).sum() for W, b in layers)
    g = softmax.copy()
    g[rows, labels] -= 1
    g /= len(x)
    for i in range(len(layers) - 1, -1, -1):
        W, b = layers[i]
        gW, gb = g.T @ outputs[i] + 2 * penalty * W, g.sum(axis=0) + 2 * b
        g = (g @ W) * (1 - outputs[i] ** 2)
        layers[i] = [W - rate * gW, b - rate * gb]
    return loss
