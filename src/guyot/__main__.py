"""`python -m guyot` is `guyot`; so is `torchrun -m guyot`."""

from guyot.app.cli import main

if __name__ == "__main__":
    main()
