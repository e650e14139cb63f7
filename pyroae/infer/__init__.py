"""What learns any (model, guide) pair."""
