"""What a model is made of: distributions, networks and corruptions."""
