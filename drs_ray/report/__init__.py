"""Reports of reduced runs: tables, figures, the HTML page, exports. Loads neither torch nor Ray."""
