"""Training sub-image classifiers under noise, and denoisers."""
