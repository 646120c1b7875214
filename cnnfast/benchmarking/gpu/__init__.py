"""Measurements on a GPU, `make gpu`: every operator and network against PyTorch's own ways to run it.

cases.py    what is measured, with compulsory bytes and multiply-adds
timers.py   events and CUDA graphs; a clock where there is no GPU, for tests of the rest
measure.py  contenders, comparison with float64, times
report.py   table, roofline plot, JSON
model.py    what the kernels read and write, reckoned without a GPU: docs/gpu.md
"""
