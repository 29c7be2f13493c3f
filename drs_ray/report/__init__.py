"""Reduced runs as people read them: tables, figures, the HTML page, exports. Loads neither torch nor Ray."""
