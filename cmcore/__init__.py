"""Few-step generative models: trained, compared and reproduced. See docs/how-it-is-built.md."""
