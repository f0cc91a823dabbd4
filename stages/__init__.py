"""One short module per DVC stage: read typed parameters, assemble, execute, write the declared outputs."""
