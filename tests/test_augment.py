"""Augmentation: what each change does, and that numbers come from the generator alone."""

import pytest
import torch
from training_support import few_images

from cnnfast.data import batches
from cnnfast.training.augment import MARGIN, FlipCropColour, coloured, cropped


@pytest.fixture
def images():
    return torch.rand(12, 1, 28, 28) * 0.5 + 0.25


def one(value):
    return torch.full((12, 1, 1, 1), value)


def test_crops_are_the_shifted_image_with_a_black_margin(images):
    places = torch.arange(12) / 12
    found = cropped(images, places, places.flip(0))
    most = round(28 * MARGIN)
    for index, image in enumerate(images[:, 0]):
        down = int(places[index] * (2 * most + 1)) - most
        right = int(places[11 - index] * (2 * most + 1)) - most
        expected = torch.zeros(28, 28)
        inside = torch.roll(image, (-down, -right), (0, 1))
        rows, columns = (slice(max(0, -by), 28 - max(0, by)) for by in (down, right))
        expected[rows, columns] = inside[rows, columns]
        assert torch.equal(found[index, 0], expected)


def test_the_middle_crop_is_the_image(images):
    middle = torch.full((12,), 0.5)
    assert torch.equal(cropped(images, middle, middle), images)


def test_colours_are_brightness_contrast_and_a_weight_per_channel(images):
    torch.testing.assert_close(coloured(images, one(1.0), one(1.0), one(1.0)), images)
    torch.testing.assert_close(coloured(images, one(1.2), one(1.0), one(1.0)), 1.2 * images)
    flat = coloured(images, one(1.0), one(0.5), one(1.0))
    mean = images.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(flat.mean((1, 2, 3), keepdim=True), mean)
    torch.testing.assert_close(flat - mean, 0.5 * (images - mean))
    rgb = images.repeat(1, 3, 1, 1)
    weights = torch.tensor([0.9, 1.0, 1.1]).reshape(1, 3, 1, 1).repeat(12, 1, 1, 1)
    torch.testing.assert_close(coloured(rgb, one(1.0), one(1.0), weights), rgb * weights)


def test_result_stays_in_range_and_leaves_the_images_alone(images):
    before = images.clone()
    found = FlipCropColour()(images * 2, torch.Generator().manual_seed(0))
    assert found.shape == images.shape and found.min() == 0 and found.max() == 1
    assert torch.equal(images, before)


def test_about_half_of_the_images_are_mirrored():
    marked = torch.zeros(400, 1, 28, 28)
    marked[..., 2:26, 6:8] = 0.5
    found = FlipCropColour()(marked, torch.Generator().manual_seed(0))
    mirrored = (found[..., 14:] > 0.3).any(3).any(2).double().mean()
    assert 0.4 < mirrored < 0.6


def test_numbers_come_from_the_generator(images):
    def changed(seed):
        return FlipCropColour()(images, torch.Generator().manual_seed(seed))

    torch.rand(3)  # torch's global generator is not asked
    assert torch.equal(changed(1), changed(1)) and not torch.equal(changed(1), changed(2))


@pytest.mark.parametrize("resize", [None, 40])
def test_parts_of_a_batch_change_as_in_the_whole(resize):
    (images, labels), _ = few_images()
    images, labels = images[:90], labels[:90]

    def passed(rank, count):
        generator = torch.Generator().manual_seed(4)
        options = {"shuffle": True, "generator": generator, "resize": resize, "part": (rank, count)}
        found = list(batches(images, labels, 32, augment=FlipCropColour(rank, count), **options))
        return found, generator.get_state()

    whole, state = passed(0, 1)
    for rank in range(2):
        part, part_state = passed(rank, 2)
        assert torch.equal(state, part_state)
        for (images_of_part, labels_of_part), (all_images, all_labels) in zip(part, whole, strict=True):
            assert torch.equal(images_of_part, all_images[rank::2])
            assert torch.equal(labels_of_part, all_labels[rank::2])
