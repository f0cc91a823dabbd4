"""Layers that networks are made of: maps with a forward-mode derivative, norms, embeddings, attention, unit weights."""
