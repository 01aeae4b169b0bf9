"""What a person reads: numbers, tables, progress."""
