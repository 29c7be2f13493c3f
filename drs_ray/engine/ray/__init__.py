"""The engine on Ray. No other part of the package imports `ray`."""
