"""Few-step generative models: trained, compared and reproduced. See README.md, "How it is built"."""
