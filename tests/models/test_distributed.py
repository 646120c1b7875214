"""Two processes of DistributedDataParallel over gloo give the gradients of one process with both halves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cnnfast

PROGRAM = """
import os, sys
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before there is a group: see cnnfast/training/processes.py
import torch.multiprocessing as mp
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
import cnnfast


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 1, 28, 28, generator=generator), torch.arange(8)


def build():
    torch.manual_seed(2)
    return cnnfast.models.get_model("residual_net")


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    net = DistributedDataParallel(build())
    images, labels = (t.chunk(2)[rank] for t in data())
    F.cross_entropy(net(images), labels).backward()
    if rank == 0:
        torch.save([p.grad for p in net.parameters()], f"{folder}/gradients.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    folder = sys.argv[1]
    mp.spawn(work, (folder,), nprocs=2)
    net = build()
    images, labels = data()
    F.cross_entropy(net(images), labels).backward()
    found = torch.load(f"{folder}/gradients.pt")
    for own, parameter in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(own, parameter.grad, rtol=1e-4, atol=1e-6)
    print("equal")
"""


@pytest.mark.slow
def test_residual_net_in_distributed_data_parallel(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, program, tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(Path(cnnfast.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().endswith("equal"), done.stdout + done.stderr
