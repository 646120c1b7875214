"""`make cuda-check`: compiles the CUDA sources for sm_80 and sm_90, or says why this machine cannot."""

import os

from .command import make_plan, run_ninja
from .cuda import DEFAULT_ARCHS


def main() -> None:
    os.environ["TORCH_CUDA_ARCH_LIST"] = DEFAULT_ARCHS
    plan, reason = make_plan()
    if plan.cuda is None:
        print(f"cuda-check: skipped: {reason}")
        return
    run_ninja(plan, ["cuda-objects"])
    print(f"cuda-check: CUDA sources compile for {', '.join(plan.cuda.archs)} (nvcc {plan.cuda.version})")


if __name__ == "__main__":
    main()
