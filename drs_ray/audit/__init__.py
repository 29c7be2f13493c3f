"""Checks of a run after the fact: its votes counted again, its radii derived again, its certificates attacked."""
