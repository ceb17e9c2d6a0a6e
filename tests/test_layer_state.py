"""The layers' state: scales that are saved, loaded, cast, moved and copied as they are."""

import copy
import io
import pickle

import pytest
import torch
from expected import slopes
from torch import nn
from torch._subclasses import FakeTensorMode

from pyrevgrad import EXACT, GUIDED, rectgrad, reverse
from pyrevgrad.compat import RevGrad
from pyrevgrad.nn import Activation, GradientReversal, ReversedConv2d, ReversedLinear
from pyrevgrad.schedules import LinearSchedule

CASTS = {
    "half": lambda layer: layer.half(),
    "bfloat16": lambda layer: layer.to(torch.bfloat16),
    "float": lambda layer: layer.float(),
    "double": lambda layer: layer.double(),
    "to cpu": lambda layer: layer.to("cpu"),
    "cpu": lambda layer: layer.cpu(),
    "share_memory": lambda layer: layer.share_memory(),
    "to_empty": lambda layer: layer.to_empty(device="cpu"),
    "inside a network": lambda layer: nn.Sequential(layer).half()[0],
}
every_cast = pytest.mark.parametrize("cast", CASTS)


# Saved and moved.


@pytest.mark.parametrize(
    "make",
    [
        lambda scale: GradientReversal(scale),
        lambda scale: Activation("tanh", reverse(torch.tensor(scale))),
    ],
    ids=["GradientReversal", "Activation"],
)
@pytest.mark.parametrize("assign", [False, True])
def test_a_scale_is_saved_and_loaded(make, assign):
    file = io.BytesIO()
    saved = nn.Sequential(nn.Linear(2, 2), make(0.125))
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded = nn.Sequential(nn.Linear(2, 2), make(1.0))
    assert loaded.load_state_dict(torch.load(file), assign=assign)
    assert loaded[1].scale.item() == 0.125 and loaded[1].scale.dtype == torch.float64
    x = torch.tensor([[0.0, 0.0]])
    assert slopes(loaded[1], (0.0, 0.0)) == [-0.125, -0.125]
    assert torch.equal(loaded(x), saved(x))


def test_a_layer_on_meta_can_be_loaded_by_assignment():
    with torch.device("meta"):
        layer = GradientReversal(0.5)
    layer.load_state_dict(GradientReversal(0.125).state_dict(), assign=True)
    assert slopes(layer) == [-0.125, -0.125]


def test_a_number_or_nothing_to_scale_leaves_the_state_dict_empty():
    assert not Activation("relu", reverse(0.3)).state_dict()
    assert list(GradientReversal().state_dict()) == ["scale"]
    assert [name for name, _ in GradientReversal().named_parameters()] == []


@every_cast
@pytest.mark.parametrize("make", [GradientReversal, lambda s: Activation("relu", reverse(s))])
def test_no_cast_or_move_changes_the_scale(make, cast):
    layer = CASTS[cast](make(torch.tensor(0.3, dtype=torch.float64)))
    assert layer.scale.dtype == torch.float64 and layer.scale.item() == 0.3
    assert "scale" in layer.state_dict()
    torch.testing.assert_close(slopes(layer), [-0.3, -0.3])


@every_cast
@pytest.mark.parametrize("rule", [EXACT, GUIDED, reverse(0.5)], ids=repr)
def test_a_layer_without_a_live_scale_survives_every_cast_and_move(rule, cast):
    layer = Activation("relu", rule)
    before = slopes(layer)
    layer = CASTS[cast](layer)
    assert slopes(layer) == before and layer.rule == rule


def test_a_half_network_reverses_by_the_full_scale():
    layer = nn.Sequential(nn.Linear(2, 2), GradientReversal(0.3)).to(torch.bfloat16)[1]
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    layer(x).backward()
    assert x.grad.item() == -0.3


@pytest.mark.parametrize("make", [GradientReversal, lambda s: Activation("relu", reverse(s))])
def test_to_empty_from_meta_gives_the_scale_back(make):
    scale = 0.3 if make is GradientReversal else torch.tensor(0.3, dtype=torch.float64)
    layer = make(scale).to("meta")
    assert layer.scale.is_meta
    layer = layer.to_empty(device="cpu")
    assert layer.scale.item() == 0.3 and layer.scale.dtype == torch.float64


@pytest.mark.parametrize("make", [GradientReversal, RevGrad])
def test_a_layer_made_on_meta_has_its_scale_after_to_empty(make):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), make(0.3))
    assert model[1].scale.is_meta
    model.to_empty(device="cpu")
    torch.testing.assert_close(slopes(model[1]), [-0.3, -0.3])


def test_a_tensor_that_has_no_value_is_no_scale():
    with torch.device("meta"):
        layer, nothing = GradientReversal(0.3), torch.tensor(0.5)
        for call in (
            lambda: GradientReversal(nothing),
            lambda: RevGrad(nothing),
            lambda: Activation("relu", reverse(nothing)),
            lambda: layer.set_scale(nothing),
        ):
            with pytest.raises(ValueError, match="scale is a tensor on the meta device, where it"):
                call()
    assert layer.to_empty(device="cpu").scale.item() == 0.3


def test_a_scale_that_is_set_on_meta_has_its_value_after_to_empty():
    layer = GradientReversal(0.3).to("meta")
    layer.set_scale(0.7)
    assert layer.to_empty(device="cpu").scale.item() == 0.7


def test_a_file_of_other_keys_leaves_what_scale_there_is():
    layer = GradientReversal(0.3)
    layer.load_state_dict({}, strict=False, assign=True)
    assert layer.scale.item() == 0.3
    layer = Activation("relu", reverse(0.3))
    layer.load_state_dict({"scale": torch.tensor(0.7)}, strict=False, assign=True)
    assert layer.scale is None and layer.rule == reverse(0.3)


def test_a_scale_that_others_wrote_is_not_taken_for_known_after_a_move():
    """What is known stands for λ on a device, where reading it would wait."""
    layer = GradientReversal(0.3)
    assert layer.double()._still_known() == 0.3
    layer.scale.fill_(0.7)
    assert layer.double()._still_known() is None


def test_a_loaded_scale_survives_a_way_over_meta():
    layer = GradientReversal(1.0)
    layer.load_state_dict(GradientReversal(0.25).state_dict())
    assert layer.to("meta").to_empty(device="cpu").scale.item() == 0.25


@pytest.mark.parametrize("strict", [True, False])
def test_a_scale_of_nan_is_not_loaded(strict):
    model = nn.Sequential(GradientReversal(0.25), nn.Linear(2, 2))
    state = model.state_dict()
    with pytest.raises(RuntimeError, match=r"0\.scale is NaN, which is no λ"):
        model.load_state_dict(state | {"0.scale": torch.tensor(float("nan"))}, strict=strict)
    assert model[0].scale.item() == 0.25
    assert repr(model[0]) == "GradientReversal(scale=0.25)"


EVERY_LAYER = pytest.mark.parametrize(
    "make",
    [
        GradientReversal,
        lambda scale: Activation("relu", reverse(torch.tensor(scale))),
        lambda scale: ReversedLinear(2, 2, scale=scale),
        lambda scale: ReversedConv2d(2, 2, 1, scale=scale),
    ],
    ids=["GradientReversal", "Activation", "ReversedLinear", "ReversedConv2d"],
)


@EVERY_LAYER
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("shape", [(0,), (2,), (1, 1)], ids=str)
def test_a_scale_with_dimensions_is_not_loaded(make, assign, shape):
    model = nn.Sequential(make(0.25))
    state = model.state_dict() | {"0.scale": torch.ones(shape)}
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.scale"):
        model.load_state_dict(state, assign=assign)
    assert torch.equal(model[0].scale, torch.tensor(0.25, dtype=torch.float64))


@EVERY_LAYER
@pytest.mark.parametrize("assign", [False, True])
def test_a_scale_of_one_number_is_loaded_without_its_dimension(make, assign):
    layer = make(0.25)
    layer.load_state_dict(layer.state_dict() | {"scale": torch.tensor([0.5])}, assign=assign)
    assert torch.equal(layer.scale, torch.tensor(0.5, dtype=torch.float64))


@pytest.mark.parametrize("assign", [True, False])
def test_a_state_of_fake_tensors_is_loaded(assign, tmp_path):

    torch.save(GradientReversal(0.25).state_dict(), tmp_path / "state.pt")
    with FakeTensorMode():
        loaded = GradientReversal(0.5).load_state_dict(
            torch.load(tmp_path / "state.pt"), assign=assign
        )
    assert not (loaded.missing_keys or loaded.unexpected_keys)


# Copies.

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": lambda layer: torch.load(_saved(layer), weights_only=False),
}


def _saved(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(
    "layer",
    [
        GradientReversal(0.25),
        Activation("relu", GUIDED),
        Activation("leaky_relu", reverse(0.5), inplace=False, negative_slope=0.25),
        Activation("tanh", rectgrad(0.25)),
        Activation("gelu", reverse(torch.tensor(0.25))),
    ],
    ids=repr,
)
def test_a_copy_behaves_as_its_original_and_is_its_own(layer, how):
    made = COPIES[how](layer)
    assert type(made) is type(layer) and repr(made) == repr(layer)
    assert slopes(made, (-1.5, 2.0)) == slopes(layer, (-1.5, 2.0))
    if getattr(layer, "name", "") == "leaky_relu":
        made.negative_slope = 0.5
        assert (made.negative_slope, layer.negative_slope) == (0.5, 0.25)
        assert slopes(made, (-1.5, 2.0)) == [-0.25, -0.5] != slopes(layer, (-1.5, 2.0))
    if layer.scale is not None:
        made.scale = 8.0
        assert layer.scale.item() == 0.25


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_keeps_a_scale_that_was_set_by_hand(how):
    layer = GradientReversal(LinearSchedule(4))
    layer.scale = 0.3
    assert COPIES[how](layer).scale.item() == 0.3


def test_a_scale_that_another_process_may_write_is_not_known_from_before():
    # Once moved to a device the layer would multiply by what it knew, and not ask.
    layer = GradientReversal(0.5)
    assert layer._still_known() == 0.5
    layer.share_memory()
    layer.scale = 0.5
    # As another process writes: to the same memory, and counted for a tensor of its own.
    elsewhere = torch.empty((), dtype=torch.float64).set_(layer.scale.untyped_storage(), 0, ())
    elsewhere.fill_(2.0)
    assert layer.scale == 2.0 and layer._still_known() is None
