"""An arena for structures: many ways to a smaller network at equal MACs, steps and recipe.

    python benchmarks/arena.py [--tasks mlp-4x80,...] [--methods 'guyot*,l2-*'] [--seeds 0-9] ...
    python benchmarks/arena.py --list
    python benchmarks/arena.py table

Each run writes ``benchmarks/results/arena/<task>/<run>.json`` when it ends; runs that are there
already are skipped, so a call that was ended continues where it stopped.
"""

from arena.command import main

from guyot.app.allocator import restart_with_fast_allocator

if __name__ == "__main__":
    restart_with_fast_allocator()
    main()
