"""Published logs of other code, stored as runs for comparisons; they are never taken for runs with votes."""
