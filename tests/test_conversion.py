"""convert: the same training with less memory, and every layer that gains nothing named."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from torch import nn
from torch._subclasses import FakeTensorMode

import pyrevgrad
from pyrevgrad import GUIDED, convert, swap


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 16),
        nn.GELU(),
        nn.Linear(16, 16),
        nn.Tanh(),
        nn.Linear(16, 4),
    )


def kept_bytes(model, x):
    """What autograd keeps, by storage, without the parameters and the input."""
    own = {t.untyped_storage().data_ptr() for t in [x, *model.parameters(), *model.buffers()]}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    total = sum(seen.values())
    del y
    return total


def trained(model, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    own = torch.Generator().manual_seed(4)
    for _ in range(steps):
        x = torch.randn(4, 3, 8, 8, generator=own)
        loss = model(x).pow(2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_what_is_converted_what_is_skipped_and_why():
    model, x = network(), torch.randn(4, 3, 8, 8)
    state = list(model.state_dict())
    before = kept_bytes(copy.deepcopy(model), x)
    done = convert(model, x)
    assert done.converted == ["4"] and isinstance(model[4], pyrevgrad.nn.Activation)
    assert done.skipped == {
        "2": "what it keeps is kept by another operation anyway",
        "8": "fused, it keeps as much as PyTorch's",
        "10": "fused, it keeps as much as PyTorch's",
    }
    assert done.bytes_before == before
    assert done.bytes_after == kept_bytes(model, x) < before
    # A leaky_relu keeps its input, which no other operation here does.
    assert before - done.bytes_after >= 4 * 8 * 8 * 8 * 4 * (1 - 1 / 32)
    assert list(model.state_dict()) == state
    text = str(done)
    assert "converted" in text and f"{before} bytes before" in text


def test_a_model_without_activation_layers_is_said_to_have_none():
    class Functional(nn.Module):
        def forward(self, x):
            return torch.relu(x)

    done = convert(Functional(), torch.randn(2))
    assert str(done) == "Functional has no activation layer (functions stay as they are)"


def test_the_mode_of_the_model_decides_what_is_kept_and_so_what_is_converted():
    model, x = small(), torch.randn(8, 4)
    evaluated = convert(model.eval(), x)
    assert evaluated.skipped == {"1": "what it keeps is kept by another operation anyway"}
    assert convert(model.train(), x).converted == ["1"]


def test_layers_that_are_converted_already_are_said_to_be():
    model, x = small(), torch.randn(8, 4)
    first = convert(model, x)
    act = model[1]
    second = convert(model, x)
    assert second.skipped == {"1": "it is pyrevgrad's already"} and model[1] is act
    assert second.bytes_before == second.bytes_after == first.bytes_after


def test_training_goes_on_as_before_bit_for_bit():
    plain = network()
    fused = copy.deepcopy(plain)
    convert(fused, torch.randn(4, 3, 8, 8))
    for a, b in zip(trained(plain), trained(fused), strict=True):
        assert torch.equal(a, b)


def test_the_forward_that_measures_changes_nothing():
    model, x = network(), torch.randn(4, 3, 8, 8)
    mean, state = model[1].running_mean.clone(), torch.get_rng_state()
    convert(model, x)
    assert torch.equal(model[1].running_mean, mean)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_chain_of_layers_that_share_a_tensor_is_converted_together():
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Hardtanh(), nn.Dropout(0.5))
    done = convert(model, torch.randn(8, 4))
    assert done.converted == ["1", "2"]
    assert done.bytes_after < done.bytes_before


def test_a_layer_under_two_names_is_replaced_under_both_and_put_back():
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Dropout(0.5))
    model.alias = model[1]
    original = model[1]
    done = convert(model, torch.randn(8, 4))
    assert model[1] is model.alias and model[1] is not original
    assert done.revert() is model
    assert model[1] is original and model.alias is original


def test_without_what_the_model_takes_nothing_is_changed():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout())
    with pytest.raises(TypeError, match=r"give it what Sequential.forward takes, as convert\(mo"):
        convert(model)
    with pytest.raises(TypeError, match=r"takes no rule; swap\(model, rule\) changes them"):
        convert(model, GUIDED)
    for where in (GUIDED, {"1": GUIDED}):
        with pytest.raises(TypeError, match=r"takes no rule; swap\(model, rule\) changes them"):
            convert(model, torch.randn(2, 4), where=where)
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'y'"):
        convert(model, torch.randn(2, 4), y=1)
    assert type(model[1]) is nn.ReLU


class Reading(nn.Module):
    """Its forward reads an attribute of its activation."""

    def __init__(self, act, attribute):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(4, 64), act, nn.Dropout(0.5)
        self.attribute = attribute

    def forward(self, x):
        return self.last(self.act(self.first(x)) * getattr(self.act, self.attribute))


def test_a_forward_that_reads_the_parameters_of_its_layers_goes_on():
    model = Reading(nn.LeakyReLU(0.25), "negative_slope")
    model.last = nn.Hardtanh()
    x = torch.randn(8, 4)
    wanted = model(x)
    assert "act" in convert(model, x).converted
    assert torch.equal(model(x), wanted)
    model.act.negative_slope = 0.5
    assert torch.equal(model(x), nn.Hardtanh()(nn.LeakyReLU(0.5)(model.first(x)) * 0.5))


def test_a_model_that_fails_with_layers_replaced_is_left_as_it_was():
    model = Reading(nn.Threshold(0, 0), "threshold")
    modules, x = dict(model.named_modules()), torch.randn(8, 4)
    with pytest.raises(
        RuntimeError, match=r"it raised AttributeError: .*'threshold'; the model is as before"
    ):
        convert(model, x)
    assert dict(model.named_modules()) == modules

    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Dropout(0.5))

        def forward(self, batches):
            return self.body(next(batches))

    model = Once()
    modules = dict(model.named_modules())
    with pytest.raises(RuntimeError, match=r"it raised StopIteration: ; the model is as before"):
        convert(model, iter([x]))
    assert dict(model.named_modules()) == modules


def test_a_layer_that_is_also_called_by_a_plain_reference_is_not_converted():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.act = nn.Linear(4, 64), nn.ReLU()
            self.last = nn.Sequential(nn.Dropout(0.5), nn.LeakyReLU(), nn.Dropout(0.5))
            self.functions = [self.act]

        def forward(self, x):
            return self.last(self.functions[0](self.body(x)))

    model = Listed()
    act, x = model.act, torch.randn(8, 4)
    before = kept_bytes(model, x)
    done = convert(model, x)
    assert done.converted == ["last.1"] and model.act is act
    assert done.skipped == {
        "act": "the model also calls it by a reference that is no module's child"
    }
    assert done.bytes_before == before > kept_bytes(model, x) == done.bytes_after


def test_layers_that_cannot_be_replaced_are_named():
    class Subclass(nn.ReLU):
        pass

    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)
    model = nn.Sequential(
        nn.Linear(4, 64), Subclass(), hooked, nn.PReLU(), nn.Threshold(1.0, 2.0), nn.ReLU()
    )
    model[0].unused = nn.ReLU()
    done = convert(model, torch.randn(8, 4), where={"5": None})
    assert not done.converted
    assert done.skipped == {
        "1": "no fused layer computes the same",
        "2": "it has hooks, which the new layer would lose",
        "3": "no fused layer computes the same",
        "4": "no fused layer computes the same",
        "5": "left out by where",
        "0.unused": "it did not run, or kept nothing, at these inputs",
    }
    alone = convert(nn.ReLU(), torch.randn(3, requires_grad=True))
    assert "it is the model itself" in alone.skipped[""]
    with pytest.raises(TypeError, match=r"convert takes a torch\.nn\.Module, not str"):
        convert("model")


@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
def test_a_compiled_model_is_refused_by_the_name_of_what_was_called():
    refused = r"^convert: the model is compiled by torch\.compile, .*; convert its _orig_mod"
    with pytest.raises(TypeError, match=refused):
        convert(torch.compile(small()), torch.randn(8, 4))


def small():
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 2))


def test_tensors_whose_storage_cannot_be_told_are_refused_in_a_sentence():
    refused = "convert cannot measure what the model keeps: "
    model = small()
    model[3] = nn.LazyLinear(2)
    with pytest.raises(ValueError, match=refused + r"3\.weight is not initialised: run the model"):
        convert(model, torch.randn(8, 4))
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"0\.weight is a meta or fake tensor"),
    ):
        convert(small(), torch.randn(8, 4))
    with FakeTensorMode(), pytest.raises(ValueError, match=r"0\.weight is a meta or fake tensor"):
        convert(small(), torch.randn(8, 4))
    with pytest.raises(ValueError, match="an input is a meta or fake tensor"):
        convert(nn.Sequential(nn.ReLU()), torch.randn(8, 4, device="meta"))
    assert type(model[1]) is nn.ReLU
    model(torch.randn(8, 4))
    assert convert(model, torch.randn(8, 4)).converted == ["1"]


def test_a_sharded_model_is_refused_in_a_sentence():
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        model = small()
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        with pytest.raises(
            ValueError, match=r"DTensor .*a model is converted before it is sharded"
        ):
            convert(model, torch.randn(8, 4))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_a_block_without_gradients_changes_nothing_about_what_is_converted(block):
    model, x = small(), torch.randn(8, 4)
    with block():
        assert convert(model, x).converted == ["1"]


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_inputs_made_in_inference_mode_are_measured_as_any(block):
    wanted = convert(small(), torch.ones(2, 4))
    with torch.inference_mode():
        x = torch.ones(2, 4)
    model = small()
    with block():
        done = convert(model, x)
    assert (done.converted, done.bytes_before) == (wanted.converted, wanted.bytes_before)
    assert done.converted and done.bytes_after == wanted.bytes_after


def test_a_model_made_in_inference_mode_is_refused_in_a_sentence():
    with torch.inference_mode():
        model = small()
    with pytest.raises(ValueError, match=r"0\.weight was made under torch\.inference_mode"):
        convert(model, torch.ones(2, 4))


def test_a_layer_is_left_alone_that_has_more_than_its_class():
    layers = [nn.ReLU() for _ in range(5)]
    layers[0].register_buffer("count", torch.zeros(()))
    layers[1].register_parameter("slope", nn.Parameter(torch.zeros(())))
    layers[2].inner = nn.Identity()
    layers[3].forward = lambda x: x.clamp(min=0) * 2
    layers[4].register_state_dict_post_hook(lambda *_: None)
    model = nn.Sequential(nn.Linear(4, 64))
    for layer in layers:
        model.extend([layer, nn.Dropout(0.5)])
    state, x = list(model.state_dict()), torch.randn(8, 4)
    done = convert(model, x)
    own = "it has tensors or layers of its own, which the new layer would lose"
    assert not done.converted and list(model.state_dict()) == state
    assert list(done.skipped.values()) == [
        own, own, own, "no fused layer computes the same",
        "it has hooks, which the new layer would lose",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Hardtanh(0, float("inf")), "hardtanh: max_val must be finite"),
        (nn.Softplus(1, float("inf")), "softplus: threshold must be finite"),
        (nn.CELU(-1), "celu: alpha must be finite and > 0, got -1.0"),
        (nn.Hardshrink(-1.0), "hardshrink: lambd must be finite and >= 0, got -1.0"),
        (nn.ELU(float("inf")), "elu: alpha must be finite"),
        (nn.LeakyReLU(torch.tensor(0.2)), "leaky_relu: negative_slope must be a number, not Ten"),
        (nn.LeakyReLU(True), "leaky_relu: negative_slope must be a number, not bool"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_parameter_that_no_fused_layer_has_leaves_its_layer_alone(layer, said):
    model = nn.Sequential(nn.Linear(4, 64), layer, nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5))
    done = convert(model, torch.randn(8, 4))
    assert done.converted == ["3"] and model[1] is layer
    assert done.skipped["1"].startswith(f"no fused layer has its parameter: {said}")


def test_a_converted_model_can_be_swapped():
    model, x = network()[:8].double(), torch.randn(4, 3, 8, 8).double()
    reference = copy.deepcopy(model)
    convert(model, x)
    with swap(model, GUIDED) as swapped:
        found = zoo.gradient(model, x)[1]
    with swap(reference, GUIDED):
        wanted = zoo.gradient(reference, x)[1]
    assert torch.equal(found, wanted)
    assert {site.spelling for site in swapped.report.replaced} == {
        "nn.ReLU",
        "pyrevgrad.leaky_relu",
    }
