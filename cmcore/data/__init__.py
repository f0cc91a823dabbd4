"""Images: where they come from, how they lie on disk, and which of them make up a batch."""
