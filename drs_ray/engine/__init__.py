"""Carries out a run: its description, the remaining units, the executors. Only `engine/ray` imports Ray."""
