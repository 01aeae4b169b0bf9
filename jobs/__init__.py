"""Jobs: one short entry per verb of the command line."""
