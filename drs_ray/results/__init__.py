"""What follows from the counts: votes to radii, certificates and curves, and the tables they are stored in."""
