"""Published networks: one file per family maps them to networks of this project and renames their tensors."""
