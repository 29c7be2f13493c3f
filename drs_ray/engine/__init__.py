"""Carrying a run out: its description, the remaining units, the executors. Ray is in `engine/ray` alone."""
