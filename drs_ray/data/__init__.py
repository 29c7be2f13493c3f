"""Data sets: images in [0, 1], labels, stable image ids and a digest."""
