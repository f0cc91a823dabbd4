"""Where a run says what it does. JSON lines are the truth; every other tracker is a view of them."""
