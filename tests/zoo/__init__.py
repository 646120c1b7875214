"""Networks of torchvision and timm through fuse and freeze; `python -m zoo` runs all of them."""
