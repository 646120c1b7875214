"""In-memory batches of Fashion-MNIST."""

import pytest
import torch

from cnnfast.data import batches, fashion_mnist


@pytest.fixture(scope="module")
def some():
    images, labels = fashion_mnist("test")
    return images[:100], labels[:100]


def test_batches_are_totensor_of_the_images_in_order(some):
    parts = list(batches(*some, 32))
    assert [len(images) for images, _ in parts] == [32, 32, 32, 4]
    images = torch.cat([images for images, _ in parts])
    assert images.shape == (100, 1, 28, 28) and images.dtype == torch.float32
    assert torch.equal(images, some[0].unsqueeze(1).float() / 255)
    assert torch.equal(torch.cat([labels for _, labels in parts]), some[1])


def test_drop_last_leaves_out_the_small_batch(some):
    assert [len(labels) for _, labels in batches(*some, 32, drop_last=True)] == [32, 32, 32]
    assert [len(labels) for _, labels in batches(*some, 50, drop_last=True)] == [50, 50]


def test_shuffled_batches_hold_each_image_once_with_its_label(some):
    numbered = torch.arange(100)
    seen = []
    generator = torch.Generator().manual_seed(3)
    for images, numbers in batches(some[0], numbered, 7, shuffle=True, generator=generator):
        assert torch.equal(images, some[0][numbers].unsqueeze(1).float() / 255)
        seen += numbers.tolist()
    assert seen != sorted(seen) and sorted(seen) == numbered.tolist()


def test_shuffling_follows_the_generator(some):
    def order(generator):
        return torch.cat([labels for _, labels in batches(*some, 9, shuffle=True, generator=generator)])

    first, second = (torch.Generator().manual_seed(5) for _ in range(2))
    assert torch.equal(order(first), order(second))
    assert not torch.equal(order(first), order(torch.Generator().manual_seed(5)))  # the second pass differs


@pytest.mark.parametrize("size", [32, 96, 224])
def test_resize_gives_the_pixels_of_torchvision_on_pil_images(some, size):
    transforms = pytest.importorskip("torchvision.transforms")
    image = pytest.importorskip("PIL.Image")
    transform = transforms.Compose([transforms.Resize(size), transforms.ToTensor()])
    expected = torch.stack([transform(image.fromarray(pixels.numpy())) for pixels in some[0][:10]])
    assert torch.equal(next(batches(*some, 10, resize=size))[0], expected)


def test_augment_gets_images_and_generator(some):
    generator = torch.Generator()
    seen = []

    def augment(images, given):
        seen.append((images.shape, given is generator))
        return 1 - images

    (images, _), *_ = batches(*some, 60, augment=augment, generator=generator)
    assert seen == [((60, 1, 28, 28), True), ((40, 1, 28, 28), True)]
    assert torch.equal(images, 1 - some[0][:60].unsqueeze(1).float() / 255)


def test_bad_arguments_of_batches_are_errors(some):
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(batches(*some, 0))
    with pytest.raises(ValueError, match="100 images, but 99 labels"):
        next(batches(some[0], some[1][:99], 8))
