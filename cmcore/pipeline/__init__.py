"""Machinery shared by stages and commands: folders, processes, progress, the schedule."""
