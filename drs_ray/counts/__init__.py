"""The stored state of a run: its record, its units, their vote counts as Parquet, compaction and repair."""
