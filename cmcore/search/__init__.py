"""Searches: their spaces, trials, scores and confirmation on fresh seeds."""
