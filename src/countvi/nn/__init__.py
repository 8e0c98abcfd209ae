"""Parts that models are built of: encoders, decoders, dispersions, libraries, observation models."""
