"""The methods: one file is one paper, with a `Config` and a `build`; found by name."""
