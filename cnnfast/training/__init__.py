"""The parts of `cnnfast.train`: settings per network, one epoch, checkpoints, log and curves."""
