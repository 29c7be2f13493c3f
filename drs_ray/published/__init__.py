"""Logs that other code published, kept as runs to compare with; never taken for runs with votes."""
