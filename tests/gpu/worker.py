"""What test_launcher.py runs in processes of their own, with the stub for a GPU: `worker.py LIBRARY STUB`.

Requests come through standard input, a line of JSON each: functions of worker_*.py by their names. Every one
runs in a fork: importing torch takes longer than they do. The operator is called with CPU tensors through the
kernel of the CUDA dispatch key.
cnnfast is not imported: the library alone does the work, as in a program without Python.
"""

import json
import os
import sys
import tempfile
import traceback

import worker_choice
import worker_host_half
import worker_launches
import worker_training

MODULES = (worker_launches, worker_training, worker_choice, worker_host_half)
FUNCTIONS = {name: value for module in MODULES for name, value in vars(module).items()}


def serve() -> None:
    """Requests {"name", "arguments", "environment"}; answers {"status", "stdout", "stderr"}."""
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            child = os.fork()
            if child == 0:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                os.environ.update(request["environment"])
                status = 1
                try:
                    FUNCTIONS[request["name"]](*request["arguments"])
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            status = os.waitpid(child, 0)[1]
            texts = []
            for file in (stdout, stderr):
                file.seek(0)
                texts.append(file.read().decode())
        print(json.dumps({"status": status, "stdout": texts[0], "stderr": texts[1]}), flush=True)


serve()
