"""From the options of a user to the parts of a model, one file per model."""
