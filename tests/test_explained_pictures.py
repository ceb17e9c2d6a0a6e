"""The picture of `python -m pyrevgrad explain`: what is drawn of an image and of a map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from pyrevgrad.explaining import pictures


def test_an_image_is_drawn_with_the_brightness_that_it_has(tmp_path):
    from PIL import Image

    for channels in (1, 3):
        grey = torch.linspace(0.2, 0.4, 64).reshape(1, 8, 8).expand(channels, 8, 8)
        pictures.draw(tmp_path / "map.png", grey, torch.zeros(1, 8, 8), "dark")
        with Image.open(tmp_path / "map.png") as drawn:
            left = np.asarray(drawn.convert("L"))[100:-60, 40:300] / 255
        # Without the white of the page.
        assert np.median(left[left < 0.9]) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_channels_that_are_no_colours_are_shown_as_their_mean(channels, tmp_path):
    x = torch.randn(channels, 6, 5)
    mean = x.double().numpy().sum(0) / channels
    wanted = (mean - mean.min()) / (mean.max() - mean.min())
    stretched = pictures.stretched(x)
    np.testing.assert_allclose(stretched[0], wanted, atol=1e-5)
    pictures.draw(tmp_path / "map.png", stretched, x, "of several channels")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_three_channels_are_shown_in_colour():
    x = torch.randn(3, 6, 5)
    wanted = (x - x.min()) / (x.max() - x.min())
    torch.testing.assert_close(pictures.stretched(x), wanted)


def test_strength_takes_maps_of_large_photos():
    found = torch.zeros(1, 4100, 4100)
    found[0, 0] = 2.0
    assert torch.equal(pictures.strength(found), torch.zeros(4100, 4100))
    found[0, :50] = 2.0
    assert pictures.strength(found)[0, 0] == 1.0
