"""Training a (model, guide): ``fit``, its loop, and the step."""
