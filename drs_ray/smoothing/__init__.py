"""From an image to vote counts: partition, keyed noise, voting. Knows torch and nothing of the rest of the package."""
