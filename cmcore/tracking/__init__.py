"""Trackers of runs. JSON lines are the record; every other tracker is a view of them."""
