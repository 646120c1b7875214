"""Triton kernels compiled when the package is built, so that a program without Python runs them.

`CNNFAST_TRITON_AOT=1 python setup.py build_ext --inplace` compiles the list of variants.py for ARCHS;
`CNNFAST_TRITON_AOT=80,90` for these alone. The result is two files that csrc/gpu/triton/table.cpp takes in:
triton_kernels.bin, every image compressed, and triton_table.inc, what is where and what it means.

settings.py  the build option, the pinned version of Triton
variants.py  which kernels with which constants and promises
compile.py   one variant -> machine code and facts for the launch
emit.py      both files
"""
