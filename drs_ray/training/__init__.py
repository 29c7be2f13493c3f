"""Training sub-image classifiers under noise."""
