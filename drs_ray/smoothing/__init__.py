"""From an image to vote counts: partition, keyed noise, voting. No files, no models, no Ray."""
