"""From vote counts to certified radii: pure numpy and scipy, no torch, no Ray, no files."""
