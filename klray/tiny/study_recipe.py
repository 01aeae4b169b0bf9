"""The recipe of the study: three sizes, seeds, dense checkpoints, children of two generations and their means.

It has what each setting of the KL scale needs. Of 0.2m-seed1 every tenth step is kept, and every step to the 30th; of
the other runs every twentieth; 0.6m has six layers. 6 runs with 268 checkpoints, 10 children, 5 grandchildren and 2
merges: 285 in all.
"""

from klray.tiny.family_recipe import DEFAULT, ORGANIZATION, SMALLEST, Child, Dense, FamilyRecipe, Merge, Size

SMALL, MIDDLE, LARGE = f"{ORGANIZATION}/tiny-0.2m", f"{ORGANIZATION}/tiny-0.4m", f"{ORGANIZATION}/tiny-0.6m"
BOTH = ("code", "prose")
# Fine-tuning is short and gentle: a tenth of each size's highest rate, which takes a child on one domain 0.14 to 0.19
# bits/byte from a run. With half of it over 100 steps it was 1.6 to 5.5, and two seeds are 0.9 to 1.5 from each other.
STEPS = 60
SMALL_RATE, MIDDLE_RATE, LARGE_RATE = 4e-4, 2e-4, 1.5e-4

STUDY = FamilyRecipe(
    sizes=(
        Size("0.2m", hidden=32, layers=2, learning_rate=10 * SMALL_RATE, seeds=(1, 2)),
        Size("0.4m", hidden=64, layers=2, learning_rate=10 * MIDDLE_RATE, seeds=(1, 2, 3)),
        Size("0.6m", hidden=64, layers=6, learning_rate=10 * LARGE_RATE, seeds=(1,)),
    ),
    dense=(Dense(f"{SMALL}-seed1", steps=(*range(31), *range(40, 601, 10))),),
    children=(
        Child(f"{LARGE}-seed1", "prose", ("prose",), STEPS, LARGE_RATE),
        Child(f"{LARGE}-seed1", "code", ("code",), STEPS, LARGE_RATE),
        Child(f"{LARGE}-seed1", "both", BOTH, STEPS, LARGE_RATE),
        Child(f"{MIDDLE}-seed1", "prose", ("prose",), STEPS, MIDDLE_RATE),
        Child(f"{MIDDLE}-seed1", "code", ("code",), STEPS, MIDDLE_RATE),
        Child(f"{MIDDLE}-seed1", "both", BOTH, STEPS, MIDDLE_RATE),
        Child(f"{MIDDLE}-seed2", "prose", ("prose",), STEPS, MIDDLE_RATE),
        Child(f"{MIDDLE}-seed2", "code", ("code",), STEPS, MIDDLE_RATE),
        Child(f"{SMALL}-seed1", "prose", ("prose",), STEPS, SMALL_RATE),
        Child(f"{SMALL}-seed1", "code", ("code",), STEPS, SMALL_RATE),
        # Grandchildren read their texts in another order (seed 2) than their parents did.
        Child(f"{LARGE}-seed1-prose", "code", ("code",), STEPS, LARGE_RATE, seed=2),
        Child(f"{MIDDLE}-seed1-prose", "code", ("code",), STEPS, MIDDLE_RATE, seed=2),
        Child(f"{MIDDLE}-seed1-prose", "prose", ("prose",), STEPS, MIDDLE_RATE, seed=2),
        Child(f"{MIDDLE}-seed1-code", "prose", ("prose",), STEPS, MIDDLE_RATE, seed=2),
        Child(f"{SMALL}-seed1-code", "prose", ("prose",), STEPS, SMALL_RATE, seed=2),
    ),
    merges=(
        Merge(f"{LARGE}-seed1-merged", (f"{LARGE}-seed1-prose", f"{LARGE}-seed1-code")),
        Merge(f"{MIDDLE}-seed1-merged", (f"{MIDDLE}-seed1-prose", f"{MIDDLE}-seed1-code")),
    ),
)

RECIPES = {"default": DEFAULT, "smallest": SMALLEST, "study": STUDY}  # by their names in models.recipe
