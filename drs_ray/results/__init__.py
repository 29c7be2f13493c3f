"""Everything that is stored or read back: tables, stores, counts, reduction, reports. Imports neither torch nor Ray."""
