"""Attacks on a run's smoothed classifier: perturbations that change its prediction, compared with certified radii."""
