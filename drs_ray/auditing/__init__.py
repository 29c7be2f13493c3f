"""An independent audit of a run's radii: it shares no code with `drs_ray.certificates` and `drs_ray.smoothing`."""
