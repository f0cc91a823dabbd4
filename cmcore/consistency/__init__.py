"""Parts that consistency models share: curricula, pairs of noise levels, weights, distances and tangents."""
