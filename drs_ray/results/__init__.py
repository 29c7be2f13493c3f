"""From counts to results: votes to radii, certificates and curves, and the tables in which they are stored."""
