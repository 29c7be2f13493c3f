"""Carrying a run out: plan, workers, driver. `ray` is imported here and nowhere else."""
