"""Networks that others have published: one file per family says which of ours they are, and renames their tensors."""
