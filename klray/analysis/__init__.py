"""From a snapshot to numbers: recipe, KL, runs, diffusion exponents, drift, maps, scale. Neither PyTorch nor Ray."""
