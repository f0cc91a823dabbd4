"""Sources of images and latents, and their conversion to one prepared array."""
