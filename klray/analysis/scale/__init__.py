"""The scale: KL in ten settings of a snapshot, beside what was published, and where a number falls among them.

Source of the settings and of the published values: arXiv:2505.15353, Figure 3 and Table 1a.
"""
