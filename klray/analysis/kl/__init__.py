"""KL divergence in bits per byte: double-centring, all pairs by tiles, chosen pairs, layers."""
