"""Damaged variants of files, loaded and run one after the other; a test runs this in a process of its own.

    python damage.py KIND FILE EXAMPLE COUNT

FILE is intact, EXAMPLE holds (input, right output). Prints one line of JSON: how many variants were errors,
and how many gave the right answer. Anything else ends the process, with the number of the variant on stderr.
"""

import json
import random
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

import safetensors.torch
import torch

import cnnfast
from cnnfast.freeze import FileFormatError
from cnnfast.plan import files
from cnnfast.plan.codec import library_checksum

_EXTREMES = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 2**20, 2**31, 2**32 + 1, 2**62, 2**63 - 1]


def bits_flipped(content, choice):
    content = bytearray(content)
    for _ in range(choice.choice([1, 1, 1, 2, 5, 100])):
        content[choice.randrange(len(content))] ^= 1 << choice.randrange(8)
    return bytes(content)


def truncated(content, choice):
    return content[: choice.randrange(len(content))]


def spliced(content, choice):
    at, length = choice.randrange(len(content)), choice.randrange(1, 40)
    return content[:at] + choice.randbytes(choice.randrange(40)) + content[at + length :]


def reversed_in_part(content, choice):
    a, b = sorted(choice.randrange(len(content)) for _ in range(2))
    return content[:a] + content[a:b][::-1] + content[b:]


def _split(content):
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _joined(header, body):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def field_changed(content, choice):
    """A field of the header: gone, or with another value."""
    header, body = _split(content)
    entry = header[choice.choice(list(header))]
    key = choice.choice(list(entry))
    value = choice.choice(
        [None, 0, -1, 2**40, 2**70, "", "9", "F64", [], [0, 2**62], {}, "\u0000" * 9, 1.5, True]
    )
    if choice.randrange(4) == 0:
        del entry[key]
    elif value == entry[key]:
        entry[key] = "other"
    else:
        entry[key] = value
    return _joined(header, body)


def length_changed(content, choice):
    length = choice.choice([0, 1, 7, len(content), len(content) - 8, 2**31, 2**63, 2**64 - 1])
    return struct.pack("<Q", length) + content[8:]


def plan_changed(content, choice):
    """A word of the plan is another, and all checksums fit again: made, not damaged."""
    header, _ = _split(content)
    tensors = safetensors.torch.load(content)
    plan = tensors["plan"].clone()
    at = choice.randrange(3, len(plan))
    plan[at] = choice.choice([*_EXTREMES, int(plan[at]) + choice.choice([-1, 1])])
    plan[2] = library_checksum(plan[3:].contiguous())
    metadata = header["__metadata__"]
    tensors["plan"] = plan
    metadata["sha256"] = files._digest(tensors, metadata)
    return safetensors.torch.save(tensors, metadata)


def metadata_changed(content, choice):
    """A field of the metadata is another, and the checksum fits again."""
    header, _ = _split(content)
    tensors, metadata = safetensors.torch.load(content), header["__metadata__"]
    key = choice.choice(["cnnfast", "torch", "network", "format", "format_version"])
    if key == "network":
        network = json.loads(metadata["network"])
        part = choice.choice(list(network))
        network[part] = choice.choice([None, 1, "x", [], [1], [[]], {}, [{}], [{"layer": 1}]])
        metadata["network"] = json.dumps(network)
    else:
        metadata[key] = choice.choice(["", "0", "2", "-1", "x" * 1000, "\u2028"])
    metadata["sha256"] = files._digest(tensors, metadata)
    return safetensors.torch.save(tensors, metadata)


def record_flipped(content, choice):
    """TorchScript: a bit in one of the tensors' records, which lie uncompressed in the archive."""
    with tempfile.TemporaryFile() as stream:
        stream.write(content)
        with zipfile.ZipFile(stream) as archive:
            tensors = [info for info in archive.infolist() if "/data/" in info.filename and info.file_size]
            info = choice.choice(tensors)
            stream.seek(info.header_offset)
            name_length, extra_length = struct.unpack("<26xHH", stream.read(30))
    start = info.header_offset + 30 + name_length + extra_length
    content = bytearray(content)
    content[start + choice.randrange(info.file_size)] ^= 1 << choice.randrange(8)
    return bytes(content)


ANYWHERE = [bits_flipped, truncated, spliced, reversed_in_part]
DAMAGED = [*ANYWHERE, field_changed, length_changed]
MADE = [plan_changed, metadata_changed]


def load_frozen(path):
    return cnnfast.load(path)


def load_script(path):
    return torch.jit.load(path)


# what loads a file, how variants are made, which errors are in order, whether another answer is one too
KINDS = {
    "damaged": (load_frozen, DAMAGED, (FileFormatError,), False),
    "made": (load_frozen, MADE, (FileFormatError, RuntimeError), True),
    "torchscript": (load_script, [record_flipped], (RuntimeError,), False),
    # whatever torch's reader meets in a broken archive
    "archive": (load_script, ANYWHERE, (Exception,), False),
}


def main(kind, file, example, count):
    load, variants, errors, other_answers = KINDS[kind]
    content = Path(file).read_bytes()
    x, wanted = torch.load(example)
    choice = random.Random(3)
    counts = {"errors": 0, "right": 0, "other": 0}
    for number in range(int(count)):
        make = choice.choice(variants)
        print(f"variant {number}: {make.__name__}", file=sys.stderr, flush=True)
        Path("variant").write_bytes(make(content, choice))
        try:
            got = load("variant")(x)
        except errors as error:
            counts["errors"] += 1
            if kind == "damaged" and not any(word in str(error) for word in ("save", "update")):
                raise SystemExit(f"variant {number}: the error does not say what to do: {error}") from error
        else:
            same = torch.equal(got, wanted)
            if not same and not other_answers:
                raise SystemExit(f"variant {number}: {make.__name__}: a wrong answer")
            counts["right" if same else "other"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
