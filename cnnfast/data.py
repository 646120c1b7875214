"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): all 70,000 images, checked, and in-memory batches of them.

The files are the four IDX files of the original release, gzipped or plain. Wherever they come from, their
decompressed content must have the digests below. (Debian rewrites the headers of the .gz files. With the
original name and time put back, they have the MD5 sums that torchvision publishes.)
"""

import gzip
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cnnfast import fetch
from cnnfast.files import write_atomically

CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


class DataError(RuntimeError):
    """The data set cannot be found, fetched or trusted. The message names the file and says what to do."""


@dataclass(frozen=True)
class IdxFile:
    name: str
    shape: tuple[int, ...]
    sha256: str  # of the decompressed file


FILES = {
    "train": (
        IdxFile(
            "train-images-idx3-ubyte",
            (60000, 28, 28),
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            (60000,),
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
    ),
    "test": (
        IdxFile(
            "t10k-images-idx3-ubyte",
            (10000, 28, 28),
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            (10000,),
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}
NAMES = tuple(file.name for pair in FILES.values() for file in pair)


def fashion_mnist(
    split: str, *, root: str | os.PathLike | None = None, download: bool = True
) -> tuple[Tensor, Tensor]:
    """Images and labels of one split of Fashion-MNIST.

    Args:
        split: "train" (60,000 images) or "test" (10,000).
        root: a folder that must hold the files, as .gz or plain. None: the first place that has them of
            `$CNNFAST_DATA`, the user's cache and the folder of Debian's package `dataset-fashion-mnist`.
        download: fetch the files (Debian's package, else torchvision's address) where no place has them.

    Returns:
        images (uint8, N×28×28) and labels (int64, N, classes as in `CLASSES`).

    Raises:
        ValueError: another split.
        DataError: no files, files that cannot be fetched, or a damaged file.
    """
    if split not in FILES:
        raise ValueError(f'split is "train" or "test", not {split!r}')
    folder = find(root, download=download)
    images, labels = (read_checked(_path_in(folder, file.name), file) for file in FILES[split])
    return images, labels.long()


def find(root: str | os.PathLike | None = None, *, download: bool = True) -> Path:
    """The folder that holds all four files: see `fashion_mnist`."""
    places = [Path(root)] if root is not None else fetch.places()
    for place in places:
        for folder in (place, place / "fashion-mnist", place / "FashionMNIST" / "raw"):
            missing = [name for name in NAMES if _path_in(folder, name) is None]
            if not missing:
                return folder
            if len(missing) < len(NAMES):
                raise DataError(f"{folder} lacks {', '.join(missing)}: {_remedy(folder)}")
    searched = ", ".join(str(place) for place in places)
    if root is not None:
        raise DataError(
            f"Fashion-MNIST is not in {searched}: put its four IDX files there, or name no folder"
        )
    if not download:
        raise DataError(f"Fashion-MNIST is not in {searched}: `python -m cnnfast data` fetches it")
    try:
        return fetch.fetch(NAMES)
    except fetch.FetchError as error:
        raise DataError(
            f"Fashion-MNIST is not in {searched} and could not be fetched ({error}): put its four IDX files "
            "into a folder and name the folder in CNNFAST_DATA"
        ) from error


def read_checked(path: Path, file: IdxFile) -> Tensor:
    """The content of one IDX file as uint8, after its magic number, sizes and digest were checked."""
    try:
        content = _decompressed(path)
        array = parse_idx(content)
        if tuple(array.shape) != file.shape:
            raise ValueError(f"it holds {tuple(array.shape)} values, not {file.shape}")
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise ValueError("its content differs from the published data set (SHA-256)")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}; {_remedy(path.parent)}") from error
    return array


def parse_idx(content: bytes) -> Tensor:
    """The array in an IDX file of unsigned bytes (format: yann.lecun.com/exdb/mnist), copied.

    Raises:
        ValueError: wrong magic number, or another length than the header says.
    """
    if len(content) < 4:
        raise ValueError(f"{len(content)} bytes are too few for an IDX header")
    zero, kind, rank = struct.unpack(">HBB", content[:4])
    if zero != 0 or kind != 8 or not 1 <= rank <= 4:
        raise ValueError(f"magic number 0x{content[:4].hex()} is not that of an IDX file of unsigned bytes")
    start = 4 + 4 * rank
    if len(content) < start:
        raise ValueError(f"{len(content)} bytes are too few for an IDX header of {rank} sizes")
    shape = struct.unpack(f">{rank}I", content[4:start])
    count = 1
    for size in shape:
        count *= size
    if len(content) != start + count:
        raise ValueError(f"it is {len(content)} bytes long, its header asks for {start + count}")
    if count == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape).clone()


def write_idx(array: Tensor, path: str | os.PathLike) -> Path:
    """Write an integer array with values 0-255 as a plain IDX file of unsigned bytes, whole or not at all."""
    if array.numel() and not 0 <= int(array.min()) <= int(array.max()) <= 255:
        raise ValueError(f"an IDX file of bytes holds 0-255, not {int(array.min())}…{int(array.max())}")
    header = struct.pack(f">HBB{array.dim()}I", 0, 8, array.dim(), *array.shape)
    return write_atomically(path, header + array.to(torch.uint8).contiguous().numpy().tobytes())


def batches(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    resize: int | tuple[int, int] | None = None,
    augment: Callable[[Tensor, torch.Generator | None], Tensor] | None = None,
    drop_last: bool = False,
    device: torch.device | str | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one pass over images in memory.

    The values are those of torchvision's `ToTensor` (pixel / 255). `resize` enlarges as its `Resize` does
    with PIL images: antialiased bilinear, rounded to whole pixel values before the division. (A GPU rounds
    once, not after either direction: about a tenth of the pixels differ by 1 / 255.)

    Args:
        images: uint8, N×H×W; labels: int64, N.
        shuffle: a new order, drawn from `generator` (None: torch's global one).
        augment: gets float images (n×1×H×W) and the generator, gives images of the same shape.
        drop_last: leave out a last batch that is smaller than `batch_size`.
        part: (rank, processes): of each batch, every processes-th image from number rank on. The parts of a
            batch are equally large; of a last one that cannot be shared equally, the rest is left out.

    Yields:
        float32 images (n×1×H×W, in [0, 1]) and int64 labels (n), on `device`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images, but {len(labels)} labels")
    rank, processes = part
    if batch_size % processes:
        raise ValueError(f"batch_size is {batch_size}: no multiple of {processes} processes")
    count = len(images)
    order = torch.randperm(count, generator=generator) if shuffle else None
    end = count - count % (batch_size if drop_last else processes)
    for start in range(0, end, batch_size):
        own = slice(start + rank, min(start + batch_size, end), processes)
        index = own if order is None else order[own]
        batch = _scaled(_resized(images[index].unsqueeze(1), resize, device))
        if augment is not None:
            batch = augment(batch, generator)
        yield batch, labels[index].to(device)


def _resized(pixels: Tensor, size: int | tuple[int, int] | None, device: torch.device | str | None) -> Tensor:
    """Pixels on `device`: whole numbers, uint8 or float32."""
    if size is None:
        return pixels.to(device)
    size = (size, size) if isinstance(size, int) else tuple(size)
    if torch.device(device or "cpu").type == "cpu":
        return F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    # Small images travel, large ones are made over there; only the CPU has the kernel for bytes.
    pixels = pixels.to(device).float()
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True).round_()


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32, copy=True).div_(255)


def _path_in(folder: Path, name: str) -> Path | None:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    return None


def _decompressed(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def _remedy(folder: Path) -> str:
    if folder == fetch.DEBIAN_FOLDER:
        return f"`apt-get install --reinstall {fetch.DEBIAN_PACKAGE}` repairs it"
    return f"delete the Fashion-MNIST files in {folder} and run `python -m cnnfast data`"
