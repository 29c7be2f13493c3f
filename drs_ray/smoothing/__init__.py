"""From an image to vote counts: partition, keyed noise, voting; without files, models or Ray."""
