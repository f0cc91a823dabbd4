"""Diffusion without learning: paths, preconditioning, noise levels, grids and single ODE steps."""
