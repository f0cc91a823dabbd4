"""Diffusion without learning: paths, preconditioning, noise levels, grids, conversions and single ODE steps."""
