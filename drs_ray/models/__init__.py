"""Base classifiers: architectures, checkpoints, and the functions that load and check a classifier."""
