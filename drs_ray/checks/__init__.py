"""Checks of a stored run: its votes are counted again, its radii derived again, its certificates attacked."""
