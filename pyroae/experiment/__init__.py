"""A run: training a recipe into a folder, scoring it, drawing it, and using its model on new rows."""
