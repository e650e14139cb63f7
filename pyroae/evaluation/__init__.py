"""What judges any (model, guide) pair, without changing it."""
