"""Threads and processes around the operators. Each test runs a program of its own."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import cnnfast

from .support import needs_extension


def start(*arguments, timeout=120, **variables):
    """Run Python in a process of its own, with these environment variables. A hang fails with a stack."""
    root = str(Path(cnnfast.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONFAULTHANDLER": "1", **variables}
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)  # its children too, and each prints where it stands
        stdout, stderr = process.communicate()
        pytest.fail(f"still running after {timeout} s\n{stdout}{stderr}")
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def run_program(source):
    """The output of a Python program; fails where the program does, or where it hangs."""
    done = start("-c", textwrap.dedent(source))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()


@needs_extension  # PyTorch's own convolution hangs here
def test_conv2d_in_a_forked_child_after_threads_have_run():
    """What a DataLoader's worker does; an OpenMP team does not survive a fork."""
    lines = run_program(
        """
        import os, signal, torch
        from cnnfast import ops
        input, weight = torch.randn(8, 16, 32, 32), torch.randn(32, 16, 3, 3)

        def run():
            output = ops.conv2d(input, weight, padding=1, activation="relu")
            return ops.max_pool2d(output, 2).numpy()  # compared with numpy: torch's own threads hang

        expected = run()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            os._exit(0 if (run() == expected).all() else 1)
        _, status = os.waitpid(pid, 0)
        print(status, (run() == expected).all())
        """
    )
    assert lines[-1] == "0 True"


def test_conv2d_in_a_spawned_process(tmp_path):
    program = tmp_path / "program.py"  # a spawned child imports its parent's main module
    program.write_text(
        textwrap.dedent(
            """
            import torch
            import torch.multiprocessing as mp
            from cnnfast import ops

            def work(rank, input, weight, total):
                total[0] = ops.conv2d(input, weight, padding=1).double().sum()

            if __name__ == "__main__":
                torch.manual_seed(0)
                input, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
                total = torch.zeros(1, dtype=torch.double).share_memory_()
                mp.spawn(work, (input, weight, total))
                expected = ops.conv2d(input, weight, padding=1).double().sum()
                print(torch.allclose(total[0], expected))
            """
        )
    )
    done = start(program)
    assert done.stdout.strip() == "True", done.stdout + done.stderr


@needs_extension
def test_threads_of_the_library_are_those_of_torch():
    """Built without OpenMP, every parallel region would be silently serial."""
    lines = run_program(
        """
        import torch
        torch.set_num_threads(2)
        from cnnfast import _info
        print(_info.openmp_threads())
        print(sum("libgomp" in line for line in open("/proc/self/maps")) > 0)
        """
    )
    assert lines == ["2", "True"]


@needs_extension
def test_unknown_instruction_set_is_an_error():
    program = "import cnnfast; print(cnnfast.ops.linear.__name__)"
    done = start("-c", program, CNNFAST_CPU_ISA="sse9")
    assert done.returncode != 0
    assert "CNNFAST_CPU_ISA" in done.stderr and "sse9" in done.stderr


@pytest.mark.parametrize("value", ["1", "yes"])
def test_reference_can_be_asked_for_and_says_so(value):
    program = "import cnnfast; from cnnfast import _ext; print(_ext.AVAILABLE)"
    done = start("-c", program, CNNFAST_REFERENCE=value)
    assert done.returncode == 0 and done.stdout.strip().endswith("False")
    assert done.stderr.count("cnnfast runs its slow reference operators") == 1
    assert "CNNFAST_REFERENCE" in done.stderr
