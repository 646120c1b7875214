"""Every network of the notes, frozen and run by the operator library."""

import pytest
import torch
from fuse.plain_networks import PLAIN, SIZES_OF, make_ours, make_plain, plain_images

import cnnfast

from .support import assert_near, needs_extension, truth

pytestmark = needs_extension


@pytest.mark.parametrize("name", PLAIN)
def test_freeze_plain_network(name, tmp_path):
    model, x = make_plain(name), plain_images(name)
    frozen = cnnfast.freeze(model, x, strict=True)
    assert_near(frozen(x), truth(model, x), 4e-5)
    assert not frozen.report().left_out
    if x.numel() < 30_000:
        assert torch.equal(cnnfast.load(frozen.save(tmp_path / "net"))(x), frozen(x))


@pytest.mark.parametrize("name", PLAIN)
def test_freeze_network_of_cnnfast(name):
    model, x = make_ours(name), plain_images(name)
    frozen = cnnfast.freeze(model, x, strict=True)
    assert_near(frozen(x), truth(model, x), 4e-5)
    assert not frozen.report().left_out


@pytest.mark.parametrize("name", SIZES_OF)
def test_freeze_plain_network_at_other_sizes(name):
    model = make_plain(name)
    frozen = cnnfast.freeze(model, plain_images(name))
    for batch, *size in ((1, 97, 99), (3, 100, 98)) if name.startswith("nin") else ((1, 33, 47), (3, 32, 32)):
        x = torch.randn(batch, 1, *size)
        assert_near(frozen(x), truth(model, x), 4e-5)
