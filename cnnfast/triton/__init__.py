"""Triton kernels for GPUs: one file per operator, kernel above, launcher below.

Import the operator's own file (`from cnnfast.triton.conv2d import conv2d`): this package imports nothing by
itself, so that `import cnnfast` never loads Triton.
"""
