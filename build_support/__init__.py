"""The build of the compiled part: setup.py calls command.BuildExt, which writes a ninja file and runs it.

environment.py  the torch to build for, the compiler, number of jobs
flags.py        compiler flags of each group of sources
cuda.py         whether CUDA sources are built, by which nvcc, for which GPUs
ninja_file.py   the rules: which source becomes what
command.py      the setuptools command
cuda_check.py   `make cuda-check`
"""
