"""Training: the state, the generator that advances it, and the session that logs, saves and resumes."""
