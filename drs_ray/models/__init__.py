"""Base classifiers: architectures, checkpoints, and the factory that joins and checks them."""
