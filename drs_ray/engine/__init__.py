"""Carrying a run out: its description, the frontier of units, the executors. Ray is in `engine/ray` alone."""
