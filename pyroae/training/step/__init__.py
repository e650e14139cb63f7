"""One optimisation step: Pyro's SVI, traced and compiled."""
