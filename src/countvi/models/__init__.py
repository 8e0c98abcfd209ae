"""Generative models, one per file. Each reads like the Methods section of its paper."""
