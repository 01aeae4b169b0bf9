"""What the page carries beside its pictures, so that it answers without a store: numbers of models, pairs and texts.

limits    how much, by arithmetic
packing   numbers and words as JSON
models    facts, maps and runs
pairs     KL of pairs and nearest models
rows      log-likelihoods of texts
charts    what figures show, by run and by setting
page_data all of it
"""
