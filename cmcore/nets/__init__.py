"""The networks F: one file each, with a `Config` and a `build`; found by name."""
