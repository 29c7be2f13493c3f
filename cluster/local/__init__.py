"""A Ray cluster of several nodes on one machine."""
