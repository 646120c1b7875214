"""A worker without torch, for tests of the parent's side: starts in milliseconds, misbehaves on request."""

import json
import os
import subprocess
import sys
import time

CHILDREN = []


def answer(request, **arguments):
    if request == "echo":
        print("noise on standard output", flush=True)
        return {"value": arguments}
    if request == "environment":
        return {"value": os.environ[arguments["name"]]}
    if request == "raise":
        return {"error": "ValueError: as asked"}
    if request == "die":
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)
    if request == "signal":
        os.kill(os.getpid(), arguments["number"])
    if request == "child":
        CHILDREN.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return {"value": CHILDREN[-1].pid}
    if request == "hang":
        time.sleep(600)
    raise AssertionError(request)


requests, replies = int(sys.argv[1]), int(sys.argv[2])
for descriptor in (requests, replies):
    os.set_inheritable(descriptor, False)
with os.fdopen(requests) as lines, os.fdopen(replies, "w") as out:
    for line in lines:
        print(json.dumps(answer(**json.loads(line))), file=out, flush=True)
