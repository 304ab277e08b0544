"""Many recipes -> pictures and a table: here, in processes, in shards, or on a Ray cluster.

    import minisd
    from minisd.sweeps import combinations

    recipes = combinations(minisd.Recipe("fire, 3d", steps=10), {"seed": range(8)})
    minisd.sweep(recipes, None, "outputs/fires", workers=2)

driver.py has `minisd.sweep`; work.py is what a worker does; folder.py keeps the rows.
docs/sweeps.md shows it all.
"""

from minisd.sweeps.axes import combinations
from minisd.sweeps.recipe_lists import read_recipes

__all__ = ["combinations", "read_recipes"]
