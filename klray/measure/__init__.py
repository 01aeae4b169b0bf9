"""What loads models beside a sweep: the noise floor, exact weight distances, the training of a lens."""
