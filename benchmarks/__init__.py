"""Speed and memory as ratios measured side by side in one run; never asserted by time in tests."""
