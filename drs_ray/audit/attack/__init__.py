"""Attacks on a run's smoothed classifier: perturbations that change its prediction, beside the certified radii."""
