"""The graph of gates and the small networks, against autograd, finite differences and formulas."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyrevgrad.reference import circuits, gates


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


class TorchReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.neg() * ctx.scale, None


def network():
    """Return mean cross-entropy of sigmoid(x @ W + b) · tanh(x @ W + b) + x, added out of order."""
    graph = circuits.Graph("x", "W", "b", "labels")
    graph.add("loss", gates.SoftmaxCrossEntropy(), "skip", "labels")
    graph.add("skip", gates.Add(), "gated", "x")
    graph.add("gated", gates.Multiply(), "open", "tanh")
    graph.add("tanh", gates.Tanh(), "affine").add("open", gates.Sigmoid(), "affine")
    return graph.add("affine", gates.Affine(), "x", "W", "b")


def network_inputs():
    labels = np.array([0, 2, 1, 2, 0])
    return {"x": draw(5, 3), "W": draw(3, 3), "b": draw(3), "labels": labels}


def test_the_order_puts_every_node_after_what_feeds_it():
    order = network().order()
    assert sorted(order) == ["affine", "gated", "loss", "open", "skip", "tanh"]
    before = [("affine", "open"), ("affine", "tanh"), ("tanh", "gated"), ("gated", "skip")]
    assert all(order.index(a) < order.index(b) for a, b in [*before, ("skip", "loss")])


def test_graph_gradients_are_those_of_torch():
    inputs = network_inputs()
    graph = network()
    values = graph.forward(**inputs)
    gradients = graph.backward("loss")
    x, W, b = (torch.from_numpy(inputs[n]).requires_grad_() for n in ("x", "W", "b"))
    affine = x @ W + b
    gated = torch.sigmoid(affine) * torch.tanh(affine)
    loss = F.cross_entropy(gated + x, torch.from_numpy(inputs["labels"]))
    assert values["loss"] == pytest.approx(loss.item(), rel=1e-13)
    wanted = {"x": x, "W": W, "b": b, "affine": affine, "gated": gated}
    expected = torch.autograd.grad(loss, list(wanted.values()))
    for name, reference in zip(wanted, expected, strict=True):
        np.testing.assert_allclose(gradients[name], reference.numpy(), rtol=1e-11, atol=1e-15)
    assert "labels" not in gradients


def test_graph_gradients_are_central_differences():
    inputs = network_inputs()
    graph = network()
    graph.forward(**inputs)
    gradients = graph.backward("loss")
    for name, at in itertools.chain.from_iterable(
        ((n, at) for at in np.ndindex(inputs[n].shape)) for n in ("x", "W", "b")
    ):
        ends = []
        for step in (1e-6, -1e-6):
            moved = inputs[name].copy()
            moved[at] += step
            ends.append(network().forward(**{**inputs, name: moved})["loss"])
        assert gradients[name][at] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6, abs=1e-9)


def test_a_node_that_feeds_several_or_one_twice_adds_its_gradients():
    graph = circuits.Graph("x").add("square", gates.Multiply(), "x", "x")
    graph.add("cube", gates.Multiply(), "square", "x")
    graph.add("sum", gates.Add(), "cube", "square")
    values = graph.forward(x=[2.0, -3.0])
    np.testing.assert_array_equal(values["sum"], [12.0, -18.0])
    gradients = graph.backward("sum", [1.0, 10.0])
    np.testing.assert_array_equal(gradients["x"], [3 * 4 + 2 * 2, 10 * (3 * 9 - 2 * 3)])


def test_running_backward_twice_gives_the_same_and_changes_nothing():
    graph, inputs = network(), network_inputs()
    values = graph.forward(**inputs)
    kept = {name: value.copy() for name, value in values.items()}
    first, second = graph.backward("loss"), graph.backward("loss")
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    for name in kept:
        np.testing.assert_array_equal(values[name], kept[name])


def test_backward_starts_at_any_node_and_reaches_only_what_feeds_it():
    graph = network()
    graph.forward(**network_inputs())
    gradients = graph.backward("tanh", np.ones((5, 3)))
    assert set(gradients) == {"tanh", "affine", "x", "W", "b"}


def test_reversal_in_a_graph_turns_only_the_branch_it_stands_in():
    graph = circuits.Graph("x").add("turned", gates.Reversal(0.25), "x")
    graph.add("sum", gates.Add(), "turned", "x")
    assert graph.forward(x=3.0)["sum"] == 6.0
    assert graph.backward("sum")["x"] == 1 - 0.25


def graph_with(*nodes):
    graph = circuits.Graph("x", "y")
    for name, gate, *feeds in nodes:
        graph.add(name, gate, *feeds)
    return graph


def test_a_cycle_is_named():
    graph = graph_with(
        ("a", gates.Add(), "x", "c"), ("b", gates.Tanh(), "a"), ("c", gates.Tanh(), "b")
    )
    with pytest.raises(ValueError, match=r"the graph has a cycle: (a|b|c) -> . -> . -> \1$"):
        graph.order()
    with pytest.raises(ValueError, match="the graph has a cycle"):
        graph.forward(x=1, y=1)
    with pytest.raises(ValueError, match="the graph has a cycle: a -> a"):
        graph_with(("a", gates.Tanh(), "a")).order()


def test_unknown_missing_and_taken_names_are_refused():
    graph = graph_with(("a", gates.Tanh(), "z"))
    with pytest.raises(ValueError, match="node 'a' is fed by 'z', which is not one of x, y, a"):
        graph.forward(x=1, y=1)
    graph = graph_with(("a", gates.Add(), "x", "y"))
    with pytest.raises(ValueError, match="the input 'y' is missing"):
        graph.forward(x=1)
    with pytest.raises(ValueError, match="'z' is not an input of this graph, which has x, y"):
        graph.forward(x=1, y=1, z=1)
    for name in ("a", "x"):
        with pytest.raises(ValueError, match=f"the name '{name}' is taken"):
            graph.add(name, gates.Tanh(), "x")
    with pytest.raises(ValueError, match="an input is named twice: x, x"):
        circuits.Graph("x", "x")
    graph.forward(x=1, y=1)
    with pytest.raises(ValueError, match="the graph has no node 'z': x, y, a"):
        graph.backward("z")


def test_a_gate_serves_one_node_with_as_many_feeds_as_it_takes():
    gate = gates.Tanh()
    graph = graph_with(("a", gate, "x"))
    with pytest.raises(ValueError, match=r"this Tanh\(\) is node 'a': give each node a gate of"):
        graph.add("b", gate, "a")
    with pytest.raises(TypeError, match=r"node 'b': Add\(\) takes \(a, b\), not 1 inputs"):
        graph.add("b", gates.Add(), "a")


def test_wrong_shapes_and_types_name_the_node():
    graph = graph_with(("total", gates.Add(), "x", "y"))
    with pytest.raises(ValueError, match=r"node 'total': Add\(\): shapes \(2,\) and \(3,\) do not"):
        graph.forward(x=[1, 2], y=[1, 2, 3])
    with pytest.raises(TypeError, match="node 'total': b must hold real numbers, not complex128"):
        graph.forward(x=[1, 2], y=1j)
    with pytest.raises(RuntimeError, match="call forward before backward"):
        graph.backward("total")
    graph.forward(x=[1, 2], y=3)
    with pytest.raises(ValueError, match=r"'total' has shape \(2,\): give the gradient sent into"):
        graph.backward("total")
    with pytest.raises(ValueError, match=r"the gradient has shape \(3,\), 'total' \(2,\)"):
        graph.backward("total", [1, 1, 1])


def test_a_node_added_after_forward_asks_for_another_forward():
    graph = graph_with(("a", gates.Tanh(), "x"))
    graph.forward(x=1, y=1)
    graph.add("b", gates.Tanh(), "a")
    with pytest.raises(RuntimeError, match="call forward before backward"):
        graph.backward("b")


CIRCUITS = [([2.0, -3.0, -3.0], [-1.0, -2.0]), (draw(3), draw(2)), (5 * draw(3), 5 * draw(2))]


def test_the_flat_circuit_gives_the_published_figures():
    """The figures of the course notes cs231n, "optimization-2": .73, .20, -.20, .39, -.39, -.59."""
    value, (gradient_w, gradient_x) = circuits.flat_circuit([2, -3, -3], [-1, -2])
    assert round(value, 2) == 0.73
    np.testing.assert_array_equal(gradient_w.round(2), [-0.20, -0.39, 0.20])
    np.testing.assert_array_equal(gradient_x.round(2), [0.39, -0.59])


@pytest.mark.parametrize(("w", "x"), CIRCUITS)
def test_the_flat_circuit_is_the_graph_of_its_gates(w, x):
    graph = circuits.Graph("w0", "w1", "w2", "x0", "x1")
    graph.add("p0", gates.Multiply(), "w0", "x0").add("p1", gates.Multiply(), "w1", "x1")
    graph.add("s", gates.Add(), "p0", "p1").add("z", gates.Add(), "s", "w2")
    graph.add("L", gates.Sigmoid(), "z")
    values = graph.forward(w0=w[0], w1=w[1], w2=w[2], x0=x[0], x1=x[1])
    expected = graph.backward("L")
    value, (gradient_w, gradient_x) = circuits.flat_circuit(w, x)
    assert value == pytest.approx(values["L"], rel=1e-14)
    for gradient, names in ((gradient_w, ("w0", "w1", "w2")), (gradient_x, ("x0", "x1"))):
        np.testing.assert_allclose(gradient, [expected[n] for n in names], rtol=1e-9)


@pytest.mark.parametrize(("w", "x"), CIRCUITS)
def test_the_flat_circuit_and_the_neuron_follow_the_formula(w, x):
    z = w[0] * x[0] + w[1] * x[1] + w[2]
    slope = math.exp(-z) / (1 + math.exp(-z)) ** 2
    value, (gradient_w, gradient_x) = circuits.flat_circuit(w, x)
    assert value == pytest.approx(1 / (1 + math.exp(-z)), rel=1e-14)
    np.testing.assert_allclose(gradient_w, [x[0] * slope, x[1] * slope, slope], rtol=1e-9)
    np.testing.assert_allclose(gradient_x, [w[0] * slope, w[1] * slope], rtol=1e-9)
    value, (in_x, in_w, in_b) = circuits.neuron(x, w[:2], w[2])
    assert value == pytest.approx(1 / (1 + math.exp(-z)), rel=1e-14)
    np.testing.assert_allclose(in_x, [w[0] * slope, w[1] * slope], rtol=1e-13)
    np.testing.assert_allclose(in_w, [x[0] * slope, x[1] * slope], rtol=1e-13)
    assert in_b == pytest.approx(slope, rel=1e-13)


def test_the_flat_circuit_survives_saturation_and_refuses_other_sizes():
    for sign in (1, -1):
        value, (gradient_w, _) = circuits.flat_circuit([sign * 1e3, 0, 0], [1, 1])
        assert value == (sign > 0)
        np.testing.assert_array_equal(gradient_w, [0, 0, 0])
    with pytest.raises(ValueError, match=r"w \(3,\) and x \(2,\) are needed, not \(2,\) and \(2,"):
        circuits.flat_circuit([1, 2], [1, 2])


def test_the_neuron_is_an_affine_gate_and_a_sigmoid():
    x, w, b = draw(7), draw(7, seed=1), 0.3
    graph = circuits.Graph("X", "W", "b").add("z", gates.Affine(), "X", "W", "b")
    values = graph.add("y", gates.Sigmoid(), "z").forward(X=x[None], W=w[:, None], b=[b])
    expected = graph.backward("y")
    value, (in_x, in_w, in_b) = circuits.neuron(x, w, b)
    assert value == pytest.approx(values["y"].item(), rel=1e-14)
    np.testing.assert_allclose(in_x, expected["X"][0], rtol=1e-13)
    np.testing.assert_allclose(in_w, expected["W"][:, 0], rtol=1e-13)
    np.testing.assert_allclose(in_b, expected["b"][0], rtol=1e-13)


def test_the_numpy_network_learns_in_each_of_200_steps():
    lines = []
    losses = circuits.train_two_layer_network(steps=200, report=lines.append)
    assert len(losses) == len(lines) == 200
    assert lines[0].split() == ["0", f"{losses[0]:.2f}"]
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert losses[-1] < losses[0] / 20


def test_the_numpy_network_is_gradient_descent_on_its_loss():
    rng = np.random.default_rng(5)
    shapes = ((64, 1000), (64, 10), (1000, 100), (100, 10))
    x, y, w1, w2 = (torch.from_numpy(rng.standard_normal(s)) for s in shapes)
    optimizer = torch.optim.SGD([w1.requires_grad_(), w2.requires_grad_()], lr=1e-4)
    expected = []
    for _ in range(5):
        loss = (torch.sigmoid(x @ w1) @ w2 - y).square().sum()
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    losses = circuits.train_two_layer_network(steps=5, seed=5, report=None)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)


def adversarial_case(seed=0):
    """The sizes of the generic adversarial network: input 2, batches of 9 and 10."""
    rng = np.random.default_rng(seed)
    parameters = circuits.adversarial_parameters(seed=seed)
    parameters = {
        part: [(W, rng.standard_normal(b.shape)) for W, b in layers]
        for part, layers in parameters.items()
    }
    source, target = rng.standard_normal((9, 2)), rng.standard_normal((10, 2)) + 1
    return parameters, source, rng.integers(8, size=9), target


def torch_layers(z, layers, bare_last):
    for i, (W, b) in enumerate(layers):
        z = z @ W + b
        if i < len(layers) - 1 or not bare_last:
            z = torch.tanh(z)
    return z


def torch_losses(parameters, source, labels, target, scale, pooled):
    """Return label and domain loss, from probabilities and with each batch run by itself."""
    features = [
        torch_layers(torch.from_numpy(x), parameters["features"], False) for x in (source, target)
    ]
    log_y = torch.log_softmax(torch_layers(features[0], parameters["label_head"], True), dim=1)
    label_loss = F.nll_loss(log_y, torch.from_numpy(labels))
    d = [
        torch.sigmoid(torch_layers(TorchReversal.apply(f, scale), parameters["domain_head"], True))
        for f in features
    ]
    terms = [-torch.log(1 - d[0]), -torch.log(d[1])]
    domain_loss = torch.cat(terms).mean() if pooled else terms[0].mean() + terms[1].mean()
    return label_loss, domain_loss


def as_tensors(parameters):
    return {
        part: [
            tuple(torch.from_numpy(a.copy()).requires_grad_() for a in layer) for layer in layers
        ]
        for part, layers in parameters.items()
    }


def flat(parameters):
    return [array for part in circuits.PARTS for layer in parameters[part] for array in layer]


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("scale", [0.5, 0.0, 2.0])
def test_the_adversarial_gradients_are_those_of_torch(scale, pooled):
    parameters, source, labels, target = adversarial_case()
    loss, gradients = circuits.adversarial_gradients(
        parameters, source, labels, target, scale=scale, pooled=pooled
    )
    tensors = as_tensors(parameters)
    expected_loss = sum(torch_losses(tensors, source, labels, target, scale, pooled))
    expected = torch.autograd.grad(expected_loss, flat(tensors))
    assert loss == pytest.approx(expected_loss.item(), rel=1e-12)
    assert len(flat(gradients)) == 12
    for gradient, reference in zip(flat(gradients), expected, strict=True):
        np.testing.assert_allclose(gradient, reference.numpy(), rtol=1e-9, atol=1e-14)


def test_the_adversarial_features_descend_the_label_loss_and_climb_the_domain_loss():
    case = adversarial_case(seed=3)
    _, gradients = circuits.adversarial_gradients(*case, scale=0.5)
    tensors = as_tensors(case[0])
    plain = torch_losses(tensors, *case[1:], scale=-1.0, pooled=True)
    features = [array for layer in tensors["features"] for array in layer]
    label, domain = (torch.autograd.grad(one, features, retain_graph=True) for one in plain)
    found = [array for layer in gradients["features"] for array in layer]
    for gradient, of_label, of_domain in zip(found, label, domain, strict=True):
        expected = (of_label - 0.5 * of_domain).numpy()
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-14)


def test_adversarial_steps_are_those_of_gradient_descent():
    parameters, source, labels, target = adversarial_case(seed=1)
    tensors = as_tensors(parameters)
    optimizer = torch.optim.SGD(flat(tensors), lr=0.01)
    for _ in range(20):
        loss, gradients = circuits.adversarial_gradients(parameters, source, labels, target)
        parameters = {
            part: [
                tuple(p - 0.01 * g for p, g in zip(layer, gradient, strict=True))
                for layer, gradient in zip(parameters[part], gradients[part], strict=True)
            ]
            for part in parameters
        }
        expected = sum(torch_losses(tensors, source, labels, target, 0.5, True))
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert loss == pytest.approx(expected.item(), rel=1e-12)
    for array, reference in zip(flat(parameters), flat(tensors), strict=True):
        np.testing.assert_allclose(array, reference.detach().numpy(), rtol=1e-9, atol=1e-14)


def test_the_adversarial_network_takes_any_sizes():
    sizes = {"inputs": 5, "features": (), "label_head": (3,), "domain_head": (4, 4, 1)}
    parameters = circuits.adversarial_parameters(**sizes)
    shapes = {part: [W.shape for W, _ in layers] for part, layers in parameters.items()}
    assert shapes == {
        "features": [],
        "label_head": [(5, 3)],
        "domain_head": [(5, 4), (4, 4), (4, 1)],
    }
    labels = np.array([0, 2])
    case = parameters, draw(2, 5), labels, draw(3, 5)
    loss, gradients = circuits.adversarial_gradients(*case)
    tensors = as_tensors(parameters)
    expected = sum(torch_losses(tensors, *case[1:], scale=0.5, pooled=True))
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert [W.shape for W, _ in gradients["domain_head"]] == shapes["domain_head"]


def test_adversarial_input_that_does_not_fit_is_refused():
    parameters, source, labels, target = adversarial_case()
    run = circuits.adversarial_gradients
    with pytest.raises(
        ValueError, match="must hold features, label_head, domain_head, and a layer"
    ):
        run({"features": []}, source, labels, target)
    with pytest.raises(ValueError, match="and a layer in each head"):
        run({**parameters, "label_head": []}, source, labels, target)
    with pytest.raises(ValueError, match=r"are needed, not \(9, 2\) and \(10, 1\)"):
        run(parameters, source, labels, target[:, :1])
    with pytest.raises(ValueError, match=r"node 'label loss': .* labels must lie between 0 and 7"):
        run(parameters, source, labels + 8, target)
    with pytest.raises(ValueError, match=r"node 'features 0': Affine\(\): X \(batch, in\)"):
        run(parameters, source[:, :1], labels, target[:, :1])
