"""Data sets by name: images in [0, 1], labels, stable image ids and a digest."""
