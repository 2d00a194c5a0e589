"""The arena: structures found by many methods, compared at equal MACs, steps and recipe.

`task` says what a task is, `planted` and `real` hold the tasks, `structures` the networks of fixed
structure, `cuts` what other libraries do, `methods` all methods by name, `training` one run,
`crew` many runs, `paired` the statistics and `page` the table.
"""
