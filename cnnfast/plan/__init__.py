"""A frozen network as data: nodes and constants in two tensors, which cnnfast::run_plan executes."""
