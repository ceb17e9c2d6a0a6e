"""`python -m pyrevgrad explain`: a picture for a user's model, a sentence for what is broken."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from pyrevgrad import __main__

pytest.importorskip("matplotlib")
Pillow = pytest.importorskip("PIL.Image")

MODEL = """
import torch
from torch import nn

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 3))

def gray():
    torch.manual_seed(0)
    model = plain()
    model[0] = nn.Conv2d(1, 4, 3)
    seen.clear()
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    return model

seen = []

def heard():
    seen.clear()
    model = plain()
    model.register_forward_pre_hook(lambda module, args: seen.append(module) if not seen else None)
    return model

def with_preprocess():
    return plain(), lambda image: torch.ones(3, 9, 9) * image.size[0]

def half():
    return plain().bfloat16()

def double():
    return plain().double()

def double_with_preprocess():
    return double(), lambda image: torch.ones(3, 9, 9)

def zero():
    model = plain()
    nn.init.constant_(model[0].bias, -100.0)
    return model

def one_number():
    return nn.Sequential(heard(), Last())

class Last(nn.Module):
    def forward(self, y):
        return y[:, 2]

def kept():
    return plain(), lambda image: seen.append(image) or torch.ones(3, 9, 9)

def tanh():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))

def silu():
    model = plain()
    model[1] = nn.SiLU()
    return model

def number():
    return 3

def fails():
    raise KeyError("no such thing")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    pixels = (np.random.default_rng(0).random((12, 10, 3)) * 255).astype(np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "photo.png").read_bytes()[:60])
    return tmp_path


def explain(folder, function, *options, image="photo.png"):
    out = folder / "map.png"
    status = __main__.main(
        [
            "explain", "--model", f"{folder}/model.py:{function}", "--image", str(folder / image),
            "--out", str(out), *options,
        ]
    )  # fmt: skip
    return status, out


@pytest.mark.parametrize("method", ["guided", "deconvnet", "rectgrad", "saliency"])
def test_a_picture_for_a_users_model(folder, method, capsys):
    status, out = explain(folder, "plain", "--method", method, "--target", "2")
    assert status == 0
    with Pillow.open(out) as drawn:
        assert drawn.size[0] > 800 and len(np.unique(np.asarray(drawn))) > 30
    printed = capsys.readouterr().out
    assert f"{method}, output 2" in printed
    assert ("1 activation replaced (1 ran), 0 left" in printed) == (method != "saliency")


def test_a_models_file_imports_its_neighbours_when_it_loads_and_when_it_builds(folder):
    (folder / "sizes_beside_it.py").write_text("classes = 3", encoding="utf-8")
    (folder / "layers_beside_it.py").write_text("from model import plain", encoding="utf-8")
    (folder / "own.py").write_text(
        "import sizes_beside_it\n"
        "def build():\n"
        "    from layers_beside_it import plain\n"
        "    assert plain()[-1].out_features == sizes_beside_it.classes\n"
        "    return plain()\n",
        encoding="utf-8",
    )
    image, out = str(folder / "photo.png"), str(folder / "map.png")
    options = ["--model", f"{folder}/own.py:build", "--image", image, "--out", out]
    assert __main__.main(["explain", *options]) == 0


def test_guided_gradcam_needs_its_layer(folder, capsys):
    status, out = explain(folder, "plain", "--method", "guided-gradcam", "--layer", "0")
    assert status == 0 and out.exists()
    assert "Sequential: 1 activation replaced" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        explain(folder, "plain", "--method", "guided-gradcam")
    assert "--method guided-gradcam and --layer belong together" in capsys.readouterr().err


def test_size_mean_std_and_preprocess(folder):
    options = ("--size", "8", "--mean", "0.5,0.4,0.3", "--std", "0.2")
    assert explain(folder, "plain", *options)[0] == 0
    assert explain(folder, "with_preprocess")[0] == 0


@pytest.mark.parametrize("function", ["half", "double"])
def test_a_model_of_another_dtype_is_given_the_image_in_it(folder, function):
    for method in ("guided", "saliency"):
        status, out = explain(folder, function, "--method", method)
        assert status == 0 and out.exists()


@pytest.fixture
def drawn(monkeypatch):
    """The images that are drawn, and their titles."""
    from pyrevgrad.explaining import pictures

    seen = []
    monkeypatch.setattr(pictures, "draw", lambda path, x, found, title: seen.append((x, title)))
    return seen


def test_the_image_is_shown_as_it_is_whatever_the_model_subtracts(folder, drawn):
    Pillow.fromarray(np.full((12, 10, 3), 51, np.uint8)).save(folder / "dark.png")
    options = ("--size", "8", "--mean", "0.5,0.4,0.3", "--std", "0.2")
    assert explain(folder, "plain", *options, image="dark.png")[0] == 0
    torch.testing.assert_close(drawn[0][0], torch.full((3, 8, 8), 0.2))


def test_the_title_names_the_method_its_layer_the_output_and_its_score(folder, drawn):
    options = ("--method", "guided-gradcam", "--layer", "0", "--target", "2")
    assert explain(folder, "heard", *options)[0] == 0
    assert explain(folder, "one_number")[0] == 0
    (model,) = sys.modules["explained_model"].seen
    with Pillow.open(folder / "photo.png") as photo:
        x = torch.from_numpy(np.asarray(photo) / np.float32(255)).permute(2, 0, 1)[None]
    score = model(x)[0, 2].item()
    assert [title for _, title in drawn] == [
        f"guided-gradcam at 0, output 2 = {score:.4g}", f"guided, output = {score:.4g}",
    ]  # fmt: skip


def test_sixteen_bit_greyscale_is_read_whole(folder):
    values = np.arange(120, dtype=np.uint16).reshape(12, 10) + 30000
    Pillow.fromarray(values).save(folder / "deep.png")
    assert explain(folder, "gray", "--gray", image="deep.png")[0] == 0
    (seen, *_) = sys.modules["explained_model"].seen
    torch.testing.assert_close(seen[0, 0].double(), torch.from_numpy(values / 65535), rtol=1e-6,
                               atol=0)  # fmt: skip


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def weighed(folder, saved):
    """The status of a command whose weights are `saved`, and the weights that it explained."""
    torch.save(saved, folder / "weights.pt")
    status, _ = explain(folder, "heard", "--weights", str(folder / "weights.pt"))
    return status, [module.state_dict() for module in sys.modules["explained_model"].seen]


def test_weights_are_loaded_safely(folder, capsys):
    state = network().state_dict()
    status, (found,) = weighed(folder, state)
    assert status == 0 and all(torch.equal(found[key], state[key]) for key in state)
    assert weighed(folder, network())[0] == 2
    error = capsys.readouterr().err
    assert "holds more than tensors, such as a whole model; save model.state_dict()" in error
    assert "\x1b" not in error


#: How training scripts save a state_dict, and what is said where it is loaded.
SAVED = {
    "under state_dict": (lambda s: {"state_dict": s, "epoch": 3}, ["under 'state_dict'"]),
    "under model": (lambda s: {"model": s, "optimizer": {}}, ["under 'model'"]),
    "under model_state_dict": (lambda s: {"model_state_dict": s}, ["under 'model_state_dict'"]),
    "of DataParallel": (lambda s: nn.DataParallel(s).state_dict(), ["'module.' is left out"]),
    "compiled": (lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, ["'_orig_mod.' is left"]),
    "all of it": (
        lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        ["under 'state_dict'", "'module.' is left out", "'_orig_mod.' is left out"],
    ),
}


@pytest.mark.parametrize("how", SAVED)
def test_weights_as_training_scripts_save_them_are_taken_and_said(folder, how, capsys):
    model = network()
    save, said = SAVED[how]
    status, (found,) = weighed(folder, save(model if "Data" in how else model.state_dict()))
    printed = capsys.readouterr().out
    assert status == 0 and all(sentence in printed for sentence in said)
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (lambda: nn.Linear(4, 3).state_dict(),
         "it lacks 4 of the model's 4 keys, as '0.weight', and the model has none of 2 of its "
         "keys, as 'weight'"),
        (lambda: network()[:1].state_dict(), "it lacks 2 of the model's 4 keys, as '4.weight'\n"),
        (lambda: nn.Sequential(*network(), nn.Linear(3, 3)).state_dict(),
         "does not fit: the model has none of 2 of its keys, as '5.weight'\n"),
        (lambda: {**network().state_dict(), "4.bias": torch.ones(2)},
         "size mismatch for 4.bias: copying a param with shape torch.Size([2])"),
        (lambda: [torch.ones(2)], "holds no state_dict but a list"),
        (lambda: {"state_dict": {0: torch.ones(2)}}, "holds no state_dict but a dict"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_get_the_first_key_that_does_not(folder, saved, message, capsys):
    assert weighed(folder, saved())[0] == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("function", "options", "image", "message"),
    [
        ("plain", (), "nothing.png", "--image: there is no file"),
        ("plain", (), "broken.png", "broken.png is broken or no image"),
        ("plain", (), "model.py", "model.py is broken or no image"),
        ("missing", (), "photo.png", "has no function 'missing'"),
        ("number", (), "photo.png", "must return a torch.nn.Module, or one and a function"),
        ("fails", (), "photo.png", "fails() failed: KeyError"),
        ("tanh", (), "photo.png", "replaced no activation"),
        ("silu", (), "photo.png", "\npass --where rectifiers to take every rectifier\n"),
        ("with_preprocess", ("--size", "8"), "photo.png", "--size: --model returns a preprocess"),
        ("plain", ("--target", "7"), "photo.png", "target 7 is out of range for outputs of shape"),
        ("plain", ("--gray",), "photo.png", "does not take an input of shape (1, 1, 12, 10)"),
        ("double_with_preprocess", (), "photo.png", "shape (1, 3, 9, 9) in torch.float32: "),
        ("plain", ("--std", "0"), "photo.png", "--std must not be 0"),
        ("plain", ("--mean", "123.7,116.3,103.5"), "photo.png", "and 123.7 is not of their unit: "),
        ("plain", ("--mean", "1,2"), "photo.png", "--mean must have 1 or 3 numbers, got 2"),
        ("plain", ("--weights", "no.pt"), "photo.png", "--weights: there is no file no.pt"),
        ("plain", ("--weights", __file__), "photo.png", "test_explain.py is broken or holds more"),
    ],
)
def test_what_is_broken_gets_a_sentence(folder, function, options, image, message, capsys):
    status, out = explain(folder, function, *options, image=image)
    captured = capsys.readouterr()
    assert status == 2 and not out.exists()
    assert captured.err.startswith("explain: ") and message in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "10000"), "--size without --model"),
        (("--std", "0", "--mean", "0"), "--mean, --std without --model: the built-in network"),
        (("--gray",), "--gray without --model"),
        (("--method", "saliency", "--where", "all"), "--where says nothing to --method saliency"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options, message, tmp_path, capsys):
    out = tmp_path / "digit.png"
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["explain", "--out", str(out), *options])
    assert stopped.value.code == 2 and not out.exists()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("given", ["a", "1,,2", "", "nan", "0.5;0.5"])
def test_mean_and_std_say_what_they_take(given, capsys):
    for option in ("--mean", "--std"):
        with pytest.raises(SystemExit):
            __main__.main(["explain", option, given])
        message = f"argument {option}: {given!r} is no number, nor one for each channel as 0.485,"
        assert message in capsys.readouterr().err


def test_the_folder_of_the_picture_is_made_or_refused(folder, capsys):
    options = ["explain", "--model", f"{folder}/model.py:plain", "--image", f"{folder}/photo.png"]
    out = folder / "maps" / "today" / "map.png"
    assert __main__.main([*options, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert __main__.main([*options, "--out", f"{folder}/photo.png/map.png"]) == 2
    assert "photo.png cannot be made a folder: " in capsys.readouterr().err


def test_a_folder_in_place_of_the_picture_is_refused_before_the_model_runs(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        explain(folder, "fails", "--out", str(folder))
    assert stopped.value.code == 2
    assert f"--out must be a file, and {folder} is a folder" in capsys.readouterr().err


def test_a_cure_that_this_command_has_not_is_one_in_python():
    from pyrevgrad.explaining import _advised

    advised = _advised("a has rectifiers\npass where=lambda site: False to leave them plain")
    assert advised == (
        "a has rectifiers\nthis command cannot leave them plain; in Python, pass "
        "where=lambda site: False to leave them plain"
    )


def test_the_cure_that_is_named_works(folder):
    assert explain(folder, "silu", "--where", "rectifiers")[0] == 0


def test_a_missing_file_and_a_file_that_does_not_run(folder, capsys):
    (folder / "bad.py").write_text("1 +", encoding="utf-8")
    image = str(folder / "photo.png")
    for place, message in (
        (f"{folder}/none.py:f", "there is no file"),
        (f"{folder}/bad.py:f", "does not run: SyntaxError"),
        ("nonsense", "--model is FILE.py:FUNCTION"),
    ):
        assert __main__.main(["explain", "--model", place, "--image", image]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["map.jpg", "map", "map.png.xyz"])
def test_a_file_that_is_no_png_by_its_name_is_refused_before_the_model_runs(folder, name, capsys):
    with pytest.raises(SystemExit) as stopped:
        explain(folder, "fails", "--out", str(folder / name))
    assert stopped.value.code == 2 and not (folder / name).exists()
    assert f"--out must end in .png, which is what is written, got {folder / name}" in (
        capsys.readouterr().err
    )


def test_the_built_in_network_explains_a_digit_it_has_not_seen(tmp_path, capsys):
    pytest.importorskip("sklearn")
    from pyrevgrad.explaining import digits

    model = digits.trained_network()
    images, labels = digits.held_out()
    assert (model(images).argmax(1) == labels).float().mean() > 0.9
    out = tmp_path / "digit.png"
    assert __main__.main(["explain", "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    said, _, _ = capsys.readouterr().out.partition("\n")
    assert said.startswith("Without --model: a small network trained on scikit-learn's digits")
    assert said.endswith("sees the image as 8 × 8 grey pixels.")


def test_a_photo_that_was_taken_sideways_is_shown_upright(folder):
    from pyrevgrad.explaining import images

    exif = Pillow.Exif()
    exif[0x0112] = 6
    with Pillow.open(folder / "photo.png") as photo:
        photo.save(folder / "sideways.png", exif=exif)
        upright = np.asarray(photo.transpose(Pillow.Transpose.ROTATE_270))
    found = images.read(folder / "sideways.png").pixels
    assert found.shape == (3, 10, 12)
    np.testing.assert_allclose(found.permute(1, 2, 0), upright / 255, rtol=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1", "L"])
def test_images_of_any_mode_have_the_pixels_of_pillow(folder, mode):
    from pyrevgrad.explaining import images

    name = folder / ("odd.tiff" if mode == "CMYK" else "odd.png")
    with Pillow.open(folder / "photo.png") as photo:
        photo.convert(mode).save(name)
    with Pillow.open(name) as odd:
        wanted = np.asarray(odd.convert("RGB")) / 255
    found = images.resized(images.read(name), None, False)
    np.testing.assert_allclose(found.permute(1, 2, 0), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.float32([[0, 255]]), r"numbers from 0 to 255, and must have them within \[0, 1\]"),
        (np.float32([[0, np.nan]]), "numbers from nan to nan"),
        (np.int32([[0, 70000]]), r"0 to 70000, and must have them within \[0, 65535\]"),
    ],
)
def test_numbers_of_unknown_scale_are_refused(folder, numbers, message):
    from pyrevgrad.explaining import ExplainError, images

    Pillow.fromarray(numbers).save(folder / "odd.tiff")
    with pytest.raises(ExplainError, match=message):
        images.read(folder / "odd.tiff")


def test_a_preprocess_is_given_all_bits_of_a_deep_grey_image(folder):
    deep = np.arange(120, dtype=np.uint16).reshape(12, 10) + 30000
    for values, mode, scale in ((deep, "F", 65535), ((deep % 256).astype(np.uint8), "L", 1)):
        Pillow.fromarray(values).save(folder / "grey.png")
        assert explain(folder, "kept", image="grey.png")[0] == 0
        (image,) = sys.modules["explained_model"].seen
        assert image.mode == mode
        np.testing.assert_allclose(np.asarray(image), values / scale, rtol=1e-6)


def test_a_map_of_zeros_is_said_to_be_one(folder, capsys):
    assert explain(folder, "zero")[0] == 0
    assert "The map is zero everywhere" in capsys.readouterr().out


def test_a_bad_layer_is_refused_with_the_names_there_are(folder, capsys):
    assert explain(folder, "plain", "--method", "guided-gradcam", "--layer", "9")[0] == 2
    assert "no module named '9': choose from 0, 1, 2, 3, 4" in capsys.readouterr().err
