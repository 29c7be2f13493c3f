"""The engine on Ray. `ray` is imported here and nowhere else."""
