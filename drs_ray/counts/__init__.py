"""What a run has counted: its record, the units it is cut into, their vote counts as Parquet, and their upkeep."""
