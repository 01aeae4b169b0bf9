"""What loads models beside a sweep: noise floor, exact weight distances, exact KL of tokens, training a lens."""
