"""The engine on Ray. No other room imports `ray`."""
